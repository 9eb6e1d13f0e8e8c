package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"tidemark/vault"
	"tidemark/vault/store"
)

func newVaultRepair() *cobra.Command {
	var f vaultFlags
	var data, undelete, dryRun, asJSON bool
	cmd := command{
		use: "repair [VAULT]", short: "Make a damaged vault one that can be used again",
		long: `Looks for damage as "tidemark vault verify" does, with --data in all that is stored, and then:

What is known of the vault on this machine is forgotten, and made anew. A pack of which nothing can be told is set aside. Of one of which parts are damaged the sound parts are kept, and the old one is set aside; so no new point refers to what is damaged. Points that have lost something are marked. They stay until they are forgotten, and what they still have can be restored. The next "tidemark backup" of such a disk reads all of the source, and stores what the vault has lost and the source still has.

What is set aside lies below aside/ in the vault. Nobody reads it, and nobody removes it.

With --undelete, for a vault with a lock, what somebody has removed from the bucket or put others over, though it was locked, is brought back first: the bucket has it still, as a version that is hidden.

Nobody else may be at work in the vault. A vault that a later tidemark wrote is not touched. When points have lost something the command ends with exit code 8.

` + vaultAddress + `.`,
		example: `tidemark vault repair --dry-run --data /backup/vault
tidemark vault repair --data /backup/vault
tidemark vault repair --undelete s3://vault-locked/web1`,
		exits: append(interruptible(), exitRefused, exitBusy, exitDamaged),
		args:  cobra.MaximumNArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			if undelete {
				if err := f.undelete(cmd, args, dryRun); err != nil {
					return err
				}
			}
			return f.with(cmd.Context(), args, func(v *openVault) error {
				return v.repair(cmd.Context(), cmd.OutOrStdout(), vault.RepairOptions{Data: data, DryRun: dryRun}, asJSON)
			})
		},
	}.build()
	f.add(cmd)
	cmd.Flags().BoolVar(&data, "data", false, "read all that is stored, too")
	cmd.Flags().BoolVar(&undelete, "undelete", false, "first bring back what somebody has removed or replaced in the bucket of a vault with a lock")
	cmd.Flags().BoolVarP(&dryRun, "dry-run", "n", false, "print what would be done, and change nothing")
	addJSON(cmd, &asJSON, "one object a line for each damage, and one in the end")
	return cmd
}

// undelete brings back what is hidden in a bucket, before the vault is opened: all of it may be.
func (f *vaultFlags) undelete(cmd *cobra.Command, args []string, dryRun bool) error {
	address, err := vaultOf(args)
	if err != nil {
		return err
	}
	s, err := f.store(cmd.Context(), address)
	if err != nil {
		return err
	}
	defer s.Close()
	n, err := store.Undelete(cmd.Context(), s, dryRun)
	if err != nil {
		return err
	}
	back := "brought back"
	if dryRun {
		back = "would bring back"
	}
	_, err = fmt.Fprintf(cmd.ErrOrStderr(), "%v: %s %d objects\n", s, back, n)
	return err
}

// repair repairs a vault, and tells of each damage when it is found.
func (v *openVault) repair(ctx context.Context, w io.Writer, o vault.RepairOptions, asJSON bool) error {
	return v.damages(w, asJSON, func(damage func(vault.Damage)) (outcome, error) {
		o.Damage = damage
		did, err := v.Repair(ctx, o)
		set, keep := "set aside", "kept"
		if o.DryRun {
			set, keep = "would set aside", "would keep"
		}
		out := outcome{json: did}
		out.text = fmt.Sprintf("%d points; %d damages; %s %d objects; %s what is sound of %d packs; %d points lost something, %d are whole again",
			did.Points, did.Damages, set, did.Aside, keep, did.Rewritten, did.Lost, did.Whole)
		if did.Locked > 0 {
			out.text += fmt.Sprintf("; %d of what was set aside is locked, and stays where it is, too", did.Locked)
		}
		if did.Lost > 0 {
			out.bad = fmt.Sprintf(": %d points lost something", did.Lost)
		}
		return out, err
	})
}
