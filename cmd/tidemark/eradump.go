package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"tidemark/format/era"
)

// eraDump is the command line of "era dump".
type eraDump struct {
	output                    string
	logical, repair, snapshot bool
	asJSON                    bool
}

// tool adds the options that era_dump has as well.
func (d *eraDump) tool(flags *pflag.FlagSet) {
	flags.StringVarP(&d.output, "output", "o", "", "`file` to write to instead of standard output; it is replaced at once when all went well")
	flags.BoolVar(&d.logical, "logical", false, "merge the writesets into the era array: the newest era of each block, and no writesets")
	flags.BoolVarP(&d.repair, "repair", "r", false, "go on after damage; blocks whose history is lost count as written in the current era")
}

func newEraDump() *cobra.Command {
	d := &eraDump{}
	cmd := command{
		use: "dump METADATA", short: "Print all of the metadata as XML or JSON",
		long: `Prints the XML of era_dump 0.9, which "tidemark era restore" and every era_restore read: the superblock, the writesets of eras that the kernel has not digested yet, and the era array.

The writeset in use at a power cut is the last one printed; era_dump 0.9 leaves it out. --logical gives the newest era of each block, 0.9 the oldest not digested. With --repair each fault is told on standard error, and only the blocks it hides count as written now: nothing that was written is lost, at worst more is copied again. era_dump 0.9 drops the whole era array for one bad block, and 1.1 fails. A superblock that is damaged cannot be repaired.`,
		example: `tidemark era dump /dev/vg/era-meta -o era.xml
tidemark era dump --logical --json era-meta.img`,
		exits: append(interruptible(), exitRefused, exitBusy, exitDamaged),
		args:  cobra.ExactArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			return d.run(cmd.Context(), args[0], cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}.build()
	d.tool(cmd.Flags())
	cmd.Flags().BoolVar(&d.snapshot, "metadata-snapshot", false, "dump the held metadata snapshot, which an active device leaves alone")
	addJSON(cmd, &d.asJSON, "one object, with neighbours that are alike together")
	return cmd
}

func (d *eraDump) run(ctx context.Context, path string, out, errs io.Writer) error {
	in, err := openEra(ctx, path, d.snapshot)
	if err != nil {
		return err
	}
	defer in.Close()
	view, err := in.view(d.snapshot)
	if err != nil {
		return err
	}
	o := era.DumpOptions{Logical: d.logical}
	if d.repair {
		o.Damaged = func(f *era.Fault) { fmt.Fprintln(errs, f) }
	}
	return writeText(out, d.output, in, func(w io.Writer) error {
		sink := era.NewXML(w)
		if d.asJSON {
			sink = era.NewJSON(w)
		}
		if err := view.Dump(sink, o); err != nil {
			return err
		}
		return view.Recheck()
	})
}
