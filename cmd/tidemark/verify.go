package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// verified is what "verify" says.
type verified struct {
	Target    string `json:"target"`
	Against   string `json:"against,omitempty"`
	Checked   int64  `json:"bytes_checked"`
	Different int64  `json:"bytes_different"`
	Outcome   string `json:"outcome"` // "ok" or "different"
}

func newVerify(g *globals) *cobra.Command {
	var against string
	var asJSON bool
	cmd := command{
		use: "verify DST", short: "Check a mirror against its checksums, or against its source",
		long: `Reads all of DST and compares it with the checksums that were kept when it was copied. With --against it is compared with SRC byte for byte, which makes sense while nobody writes to SRC.

Nothing is repaired: the next "tidemark mirror" copies what differs.`,
		example: "tidemark verify /backup/vdb1.img\ntidemark verify /backup/vdb1.img --against /dev/vdb1",
		exits:   append(interruptible(), exitDifferent, exitBusy, exitDamaged),
		args:    cobra.ExactArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			bar := newProgress(cmd.ErrOrStderr(), asJSON)
			v, err := g.verify(cmd.Context(), args[0], against, bar)
			bar.End()
			if err != nil {
				return err
			}
			return v.print(cmd.OutOrStdout(), asJSON)
		},
	}.build()
	cmd.Flags().StringVar(&against, "against", "", "`src` to compare with, named as for \"tidemark mirror\"")
	addJSON(cmd, &asJSON, "one object")
	cmd.ValidArgsFunction = g.completeMirrors
	return cmd
}

func (v verified) print(w io.Writer, asJSON bool) error {
	v.Outcome = "ok"
	if v.Different > 0 {
		v.Outcome = "different"
	}
	var err error
	if asJSON {
		err = printJSON(w, v)
	} else {
		_, err = fmt.Fprintf(w, "%s: %s checked, %s differ\n", v.Target, size(v.Checked), size(v.Different))
	}
	if err == nil && v.Different > 0 {
		err = told{fmt.Errorf("verify: %s: %d bytes: %w", v.Target, v.Different, errDifferent)}
	}
	return err
}
