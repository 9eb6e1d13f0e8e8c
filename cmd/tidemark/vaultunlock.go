package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"tidemark/vault"
)

func newVaultUnlock() *cobra.Command {
	var f vaultFlags
	var all, dryRun, asJSON bool
	cmd := command{
		use: "unlock [VAULT]", short: "Tell who is at work in a vault, and let go of those who died",
		long: `Lists who is at work in the vault: each backup, copy, prune and repair leaves a note there, which it renews, and takes away when it ends. A note that was not renewed for an hour counts no more; until then "tidemark prune --now" and "tidemark vault repair" are refused. Notes that have ended are removed, and so are those of processes that this machine does not have any more.

With --all the others are removed, too. Do that when you know that their machines are off. A backup that is at work all the same is not harmed: before its point appears it looks whether all is there that the point needs.

` + vaultAddress + `.`,
		example: `tidemark vault unlock --dry-run /backup/vault
tidemark vault unlock /backup/vault`,
		exits: append(interruptible(), exitRefused, exitDamaged),
		args:  cobra.MaximumNArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			return f.with(cmd.Context(), args, func(v *openVault) error {
				return v.release(cmd.Context(), cmd.OutOrStdout(), all, dryRun, asJSON)
			})
		},
	}.build()
	f.add(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "remove the notes of those who may be at work, too")
	cmd.Flags().BoolVarP(&dryRun, "dry-run", "n", false, "list them, and remove none")
	addJSON(cmd, &asJSON, "one object a line for each")
	return cmd
}

// heldBy is a note of somebody at work, and whether it was removed.
type heldBy struct {
	vault.Lease
	Removed bool `json:"removed"`
}

func (v *openVault) release(ctx context.Context, w io.Writer, all, dryRun, asJSON bool) error {
	held, err := v.Leases(ctx)
	if err != nil {
		return err
	}
	for _, l := range held {
		h := heldBy{Lease: l, Removed: !dryRun && (all || l.Ended || l.Gone)}
		if h.Removed {
			if err := v.Unlock(ctx, l); err != nil {
				return err
			}
		}
		if err := printHeld(w, h, asJSON); err != nil {
			return err
		}
	}
	return nil
}

func printHeld(w io.Writer, h heldBy, asJSON bool) error {
	if asJSON {
		return printJSON(w, h)
	}
	state := "at work"
	switch {
	case h.Gone:
		state = "its process is gone"
	case h.Ended:
		state = "not renewed in time"
	}
	if h.Removed {
		state += "; removed"
	}
	_, err := fmt.Fprintf(w, "%s on %s, process %d, since %s: %s\n", h.Work, h.Host, h.Process, stamp(h.Begun), state)
	return err
}
