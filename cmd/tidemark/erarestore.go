package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"tidemark/format/era"
)

// eraRestore is the command line of "era restore" and "era repair".
type eraRestore struct {
	input, output string
	quiet         bool
	force         bool
	asJSON        bool
}

// restored is what "era restore" and "era repair" say.
type restored struct {
	Input  string `json:"input"`
	Output string `json:"output"`
	Size   int64  `json:"size"`             // bytes of the output
	Faults int    `json:"faults,omitempty"` // of the input
	InUse  uint64 `json:"in_use"`           // metadata blocks

	Superblock era.Superblock `json:"superblock"`
}

// tool adds the options that era_restore and era_repair have as well.
func (r *eraRestore) tool(flags *pflag.FlagSet, input string) {
	flags.StringVarP(&r.input, "input", "i", "", input)
	flags.StringVarP(&r.output, "output", "o", "", "metadata `device` or existing file to write")
	flags.BoolVarP(&r.quiet, "quiet", "q", false, "say nothing but errors")
}

func (r *eraRestore) native(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&r.force, "force", false, "overwrite an output that holds a filesystem or the like; never one in use")
	addJSON(cmd, &r.asJSON, "one object")
}

// checkArgs wants both names.
func (r *eraRestore) checkArgs(cmd *cobra.Command, args []string) error {
	switch {
	case r.input == "":
		return errors.New("give the input with -i")
	case r.output == "":
		return errors.New("give the output with -o")
	}
	return cobra.NoArgs(cmd, args)
}

func newEraRestore() *cobra.Command {
	r := &eraRestore{}
	cmd := command{
		use: "restore -i XML -o METADATA", short: "Write metadata from the XML of a dump",
		long: `Reads the XML of "tidemark era dump" or of any era_dump, 0.9 or 1.x, and writes the metadata it describes to a device or an existing file.

All of the XML is read and laid out before the first write, so that XML which is cut off or does not fit leaves the output as it was. Then the superblock is zeroed, and written last: a restore that is interrupted leaves no metadata rather than half of it. What was written is read back and checked.

An output in use is refused. 1.x restores too many blocks for a "marked" element that crosses a multiple of 64; this does not.`,
		example: `tidemark era dump /dev/vg/era-meta -o era.xml
tidemark era restore -i era.xml -o /dev/vg/era-meta-new`,
		exits: append(interruptible(), exitRefused),
		args:  r.checkArgs,
		run: func(cmd *cobra.Command, _ []string) error {
			return r.restore(cmd.Context(), cmd.OutOrStdout(), newProgress(cmd.ErrOrStderr(), r.quiet || r.asJSON))
		},
	}.build()
	r.tool(cmd.Flags(), "`file` of XML")
	r.native(cmd)
	return cmd
}

func newEraRepair() *cobra.Command {
	r := &eraRestore{}
	cmd := command{
		use: "repair -i METADATA -o METADATA", short: "Write new metadata from what can be read of damaged metadata",
		long: `Reads the metadata of the input, which nobody may be using, and writes what can be read of it to the output, a device or an existing file that is not the input. The input is never written to.

Each fault is told on standard error. Blocks whose history it hides count as written in the current era: no change is lost, and only those blocks are copied again. era_repair of 1.x reports blocks that were not written. A superblock that is damaged cannot be repaired. A held metadata snapshot is not kept.

All of the input is read before the first write; the superblock of the output is zeroed then, and written last. What was written is read back and checked.`,
		example: "tidemark era repair -i /dev/vg/era-meta -o /dev/vg/era-meta-new",
		exits:   append(interruptible(), exitRefused, exitBusy, exitDamaged),
		args:    r.checkArgs,
		run: func(cmd *cobra.Command, _ []string) error {
			return r.repair(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}.build()
	r.tool(cmd.Flags(), "`device` or file with the damaged metadata")
	r.native(cmd)
	return cmd
}

func (r *eraRestore) restore(ctx context.Context, out io.Writer, bar progress) (err error) {
	xml, err := openXML(r.input)
	if err != nil {
		return err
	}
	defer xml.Close()
	target, err := openEraTarget(ctx, r.output, xml, r.force)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	phase := "check"
	sum, err := target.write(func(w io.WriterAt, size int64) error {
		read, err := newXMLReader(ctx, xml, bar, phase)
		if err != nil {
			return err
		}
		phase = "restore"
		defer bar.End()
		return era.Restore(read, w, size)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", r.input, err)
	}
	return r.print(out, target, sum, 0)
}

// openXML opens what can be read twice.
func openXML(path string) (*os.File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("era: input: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, hinted{
			fmt.Errorf("era: input %s: not a regular file", path),
			"it is read twice, once before anything is written: put the XML into a file",
		}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("era: input: %w", err)
	}
	return f, nil
}

// xmlReader reads a file from its start, shows how far it is, and ends when the
// context does.
type xmlReader struct {
	f    *os.File
	ctx  context.Context
	bar  progress
	done int64
}

func newXMLReader(ctx context.Context, f *os.File, bar progress, phase string) (*xmlReader, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	if info.Size() > 0 {
		bar.Begin(phase, info.Size())
	}
	return &xmlReader{f: f, ctx: ctx, bar: bar}, nil
}

// Read implements io.Reader.
func (x *xmlReader) Read(p []byte) (int, error) {
	if err := context.Cause(x.ctx); err != nil {
		return 0, err
	}
	n, err := x.f.Read(p)
	x.done += int64(n)
	if n > 0 {
		x.bar.Done(x.done)
	}
	return n, err
}

func (r *eraRestore) repair(ctx context.Context, out, errs io.Writer) (err error) {
	in, err := openEra(ctx, r.input, false)
	if err != nil {
		return err
	}
	defer in.Close()
	m, err := era.Open(in, in.dev.Size())
	if err != nil {
		return err
	}
	target, err := openEraTarget(ctx, r.output, in.dev.File(), r.force)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	faults := 0
	report := func(*era.Fault) {} // the first pass, which writes nothing, meets them as well
	sum, err := target.write(func(w io.WriterAt, size int64) error {
		defer func() {
			report = func(f *era.Fault) {
				faults++
				if !r.quiet && ctx.Err() == nil {
					fmt.Fprintln(errs, f)
				}
			}
		}()
		return era.Repair(m, w, size, report)
	})
	if err != nil {
		return err
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return r.print(out, target, sum, faults)
}

func (r *eraRestore) print(out io.Writer, target *eraTarget, sum era.Summary, faults int) error {
	if !r.asJSON {
		return nil
	}
	return printJSON(out, restored{
		Input: r.input, Output: r.output, Size: target.Size(), Faults: faults,
		InUse: sum.InUse, Superblock: sum.Superblock,
	})
}
