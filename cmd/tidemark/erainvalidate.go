package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"tidemark/format/era"
)

// eraInvalidate is the command line of "era invalidate".
type eraInvalidate struct {
	since    eraNumber
	output   string
	snapshot bool
	asJSON   bool
	quiet    bool // without notes on standard error
}

// tool adds the options that era_invalidate has as well.
func (v *eraInvalidate) tool(flags *pflag.FlagSet) {
	flags.Var(&v.since, "written-since", "list the blocks written in this era or later")
	flags.BoolVar(&v.snapshot, "metadata-snapshot", false, "read the held metadata snapshot, which an active device leaves alone")
	flags.StringVarP(&v.output, "output", "o", "", "`file` to write to instead of standard output; it is replaced at once when all went well")
}

func newEraInvalidate() *cobra.Command {
	v := &eraInvalidate{}
	cmd := command{
		use: "invalidate METADATA --written-since ERA", short: "List the blocks that were written since an era",
		long: `Prints the XML of era_invalidate 0.9, which era_copy reads: the blocks written in era ERA or later, in blocks of the era device, ends exclusive. A list without its last line is incomplete.

On an active device take a metadata snapshot, list it with --metadata-snapshot, and ask from the era that --json names the next time. That the snapshot was held to the end is checked: if it was dropped the list is left without its last line, and the command fails. Without --metadata-snapshot the newest state is read, the writeset in use at a power cut included.

The released era_invalidate is wrong in parts: 0.9 reads the live state and not the snapshot; 1.0 to 1.3.2 print an empty list when every era is digested; all leave out what was written last before a power cut.

Two things dm-era itself does not know. When a device has grown, nobody has written to the new part: copy it as well. And a discard of many blocks marks only the first: the rest of what was discarded, as by fstrim, is not listed. The metadata does not tell whether there were any; "tidemark era changes" asks the kernel, and fails then.`,
		example: `tidemark era invalidate --written-since 12 --metadata-snapshot /dev/vg/era-meta
tidemark era invalidate --written-since 12 --json era-meta.img`,
		exits: append(interruptible(), exitRefused, exitBusy, exitDamaged),
		args: func(cmd *cobra.Command, args []string) error {
			if !v.since.given {
				return errors.New("--written-since ERA is needed")
			}
			return cobra.ExactArgs(1)(cmd, args)
		},
		run: func(cmd *cobra.Command, args []string) error {
			return v.run(cmd.Context(), args[0], cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}.build()
	v.tool(cmd.Flags())
	addJSON(cmd, &v.asJSON, "one object: the ranges as [begin, end), and the era to ask from the next time")
	return cmd
}

func (v *eraInvalidate) run(ctx context.Context, path string, out, errs io.Writer) error {
	in, err := openEra(ctx, path, v.snapshot)
	if err != nil {
		return err
	}
	defer in.Close()
	view, err := in.view(v.snapshot)
	if err != nil {
		return err
	}
	if !v.quiet {
		v.note(errs, view)
	}
	return writeText(out, v.output, in, func(w io.Writer) error {
		list := v.list(w, view)
		if err := view.Changed(era.Query{Since: era.Era(v.since.value)}, list.Range); err != nil {
			return err
		}
		if err := view.Recheck(); err != nil {
			return err
		}
		return list.Close()
	})
}

// note tells what a user may not expect.
func (v *eraInvalidate) note(errs io.Writer, view *era.View) {
	s := view.Superblock()
	switch {
	case era.Era(v.since.value) > s.Era:
		fmt.Fprintf(errs, "tidemark: note: the current era is %d, so nothing can have been written since era %d\n", s.Era, v.since.value)
	case !view.Clean():
		fmt.Fprintf(errs, "tidemark: note: the device was not closed properly; the writeset of era %d, which was in use, is included\n", s.Era)
	}
}

// rangeList takes the ranges in order; what it wrote is complete after Close.
type rangeList interface {
	Range(era.Range) error
	Close() error
}

func (v *eraInvalidate) list(w io.Writer, view *era.View) rangeList {
	if !v.asJSON {
		return era.NewRangesXML(w)
	}
	s := view.Superblock()
	head := fmt.Sprintf(`{"written_since":%d,"era":%d,"block_size":%d,"nr_blocks":%d,"metadata_snapshot":%t,"clean":%t,"blocks":[`,
		v.since.value, s.Era, s.BlockSectors, s.NrBlocks, v.snapshot, view.Clean())
	return &rangesJSON{list: jsonList{w: w, head: head}}
}

// rangesJSON writes the list as JSON.
type rangesJSON struct{ list jsonList }

// Range implements rangeList.
func (r *rangesJSON) Range(b era.Range) error {
	return r.list.addValue([2]era.Block{b.Begin, b.End})
}

// Close implements rangeList.
func (r *rangesJSON) Close() error { return r.list.end("}") }
