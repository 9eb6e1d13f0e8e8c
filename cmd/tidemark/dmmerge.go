package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/pflag"

	"tidemark/transfer/stores"
)

const dmMergeUsage = `dm-merge (tidemark) applies a dm-snapshot's store to the device that it is a snapshot of.

Usage:
dm-merge [options] -i <snapshot store> [-o <output device>]

Options:
  -i <file>  the snapshot's COW (copy-on-write) device or file
  -o <file>  the device or file that is written to
  -f         really do it; else nothing is written (dry run)
  -x         relaxed: accepted, and without effect; sizes are always known here
  -d         print dd lines as list_exception_chunks.pl does, and do nothing else
  -D         write past the page cache (O_DIRECT)
  -v         tell each extent; more of them tell no more
  -h         print this text
  -V         print the version
`

// dmMerge is the command line of dm-merge.
type dmMerge struct {
	input, output  string
	really, direct bool
	dd             bool
	verbose        int
}

func asDMMerge(ctx context.Context, args []string, std stdio) error {
	m := &dmMerge{}
	flags := pflag.NewFlagSet("dm-merge", pflag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVarP(&m.input, "input", "i", "", "")
	flags.StringVarP(&m.output, "output", "o", "", "")
	flags.BoolVarP(&m.really, "force", "f", false, "")
	flags.BoolP("relaxed", "x", false, "")
	flags.BoolVarP(&m.dd, "dd", "d", false, "")
	flags.BoolVarP(&m.direct, "direct", "D", false, "")
	flags.CountVarP(&m.verbose, "verbose", "v", "")
	help := flags.BoolP("help", "h", false, "")
	version := flags.BoolP("version", "V", false, "")
	err := flags.Parse(args)
	switch {
	case err != nil:
	case *help:
		_, err := fmt.Fprint(std.out, dmMergeUsage)
		return err
	case *version:
		_, err := fmt.Fprintf(std.out, "dm-merge (tidemark %s)\n", versionText())
		return err
	case flags.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case m.input == "":
		err = fmt.Errorf("no store was given (-i)")
	case m.output == "" && m.really:
		err = fmt.Errorf("no output was given (-o)")
	}
	if err != nil {
		return fmt.Errorf("dm-merge: %w\n%s", err, dmMergeUsage)
	}
	if err = m.run(ctx, std); err != nil {
		if hint := hintOf(err); hint != "" {
			err = fmt.Errorf("%w\n%s", err, hint)
		}
		err = fmt.Errorf("dm-merge: %w", err)
	}
	return err
}

func (m *dmMerge) run(ctx context.Context, std stdio) error {
	list := storeList{dd: m.dd, origin: m.output}
	if m.dd || m.verbose > 0 {
		if err := list.run(m.input, std.out); err != nil || m.dd {
			return err
		}
	}
	if m.output == "" {
		return m.count(std.out)
	}
	bar := newProgress(std.errs, false)
	rep, err := applyStore(ctx, m.input, m.output, !m.really, stores.Options{
		StateDir: fromEnvironment().stateDir, Direct: m.direct, Progress: phases(bar), Note: bar.Note,
	})
	bar.End()
	if err != nil {
		return err
	}
	return printApplied(std.out, rep, !m.really)
}

// count tells what a store holds where no output is given to compare with.
func (m *dmMerge) count(out io.Writer) error {
	s, err := stores.Open(m.input)
	if err != nil {
		return err
	}
	defer s.Close()
	sum, err := s.Sound(1 << 62)
	if err == nil {
		_, err = fmt.Fprintf(out, "would write %s in %d extents\n", size(sum.Exceptions*s.ChunkSize()), sum.Extents)
	}
	return err
}
