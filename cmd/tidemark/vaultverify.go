package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"tidemark/vault"
)

// errDamages says that a vault does not have all that its points need.
var errDamages = errors.New("the vault is damaged")

// share is a flag for a part of a whole: "all", or as "5%".
type share float64

func (s *share) Type() string   { return "share" }
func (s *share) String() string { return "" }

// Set implements pflag.Value.
func (s *share) Set(text string) error {
	if text == "all" {
		*s = 1
		return nil
	}
	number, percent := strings.CutSuffix(text, "%")
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || !percent || !(n > 0 && n <= 100) {
		return errors.New("must be all, or a share as 5%")
	}
	*s = share(n / 100)
	return nil
}

func newVaultVerify() *cobra.Command {
	var f vaultFlags
	var data share
	var asJSON bool
	cmd := command{
		use: "verify [VAULT]", short: "Check that every point of a vault can be restored",
		long: `Checks that the map of every point is whole, and that each piece that it needs is where it should be. With --data all it also reads what is stored, and holds it against its checksums and seals; with --data 5% a share of the packs, others each time.

What is damaged is told, and which bytes of which point cannot be restored. Nothing is changed. When anything is damaged the command ends with exit code 8, and "tidemark vault repair" says what can be done.

` + vaultAddress + `.`,
		example: `tidemark vault verify /backup/vault
tidemark vault verify --data 5% /backup/vault`,
		exits: append(interruptible(), exitRefused, exitDamaged),
		args:  cobra.MaximumNArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			return f.with(cmd.Context(), args, func(v *openVault) error {
				return v.verify(cmd.Context(), cmd.OutOrStdout(), data, asJSON)
			})
		},
	}.build()
	f.add(cmd)
	cmd.Flags().Var(&data, "data", "how much of what is stored to read: all, or a share as 5%; by default nothing")
	addJSON(cmd, &asJSON, "one object a line for each damage, and one in the end")
	return cmd
}

// verify checks a vault, and tells of each damage when it is found.
func (v *openVault) verify(ctx context.Context, w io.Writer, data share, asJSON bool) error {
	return v.damages(w, asJSON, func(damage func(vault.Damage)) (outcome, error) {
		sum, err := v.Verify(ctx, vault.VerifyOptions{Data: data > 0, Share: float64(data), Damage: damage})
		o := outcome{json: sum}
		o.text = fmt.Sprintf("%d points need %d packs; read %s of them; %d damages; %d packs are needed by none",
			sum.Points, sum.Packs, size(sum.Bytes), sum.Damages, sum.Unneeded)
		if sum.Damages > 0 {
			o.bad = fmt.Sprintf(" in %d places", sum.Damages)
		}
		return o, err
	})
}

// outcome is what a look for damage came to.
type outcome struct {
	json any
	text string // for people
	bad  string // how the vault is damaged in the end; "": it is not
}

// damages tells of each damage that look finds, when it is found, and then of the outcome.
func (v *openVault) damages(w io.Writer, asJSON bool, look func(damage func(vault.Damage)) (outcome, error)) error {
	var unread error
	o, err := look(func(d vault.Damage) {
		if unread == nil {
			unread = printDamage(w, d, asJSON)
		}
	})
	if err = errors.Join(err, unread); err != nil {
		return err
	}
	if asJSON {
		err = printJSON(w, o.json)
	} else {
		_, err = fmt.Fprintln(w, o.text)
	}
	if err == nil && o.bad != "" {
		err = fmt.Errorf("%v: %w%s", v.store, errDamages, o.bad)
		if asJSON {
			err = told{err}
		}
	}
	return err
}

func printDamage(w io.Writer, d vault.Damage, asJSON bool) error {
	if asJSON {
		return printJSON(w, d)
	}
	lost := ""
	switch {
	case d.Point != "" && d.Extent.Empty():
		lost = d.Point + ": all of it: "
	case d.Point != "":
		lost = fmt.Sprintf("%s: bytes %d-%d: ", d.Point, d.Extent.Off, d.Extent.End()-1)
	}
	_, err := fmt.Fprintf(w, "%s%s: %s\n", lost, d.Object, d.Reason)
	return err
}
