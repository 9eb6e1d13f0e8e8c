package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"tidemark/format/era"
)

// eraCheck is the command line of "era check".
type eraCheck struct {
	quiet       bool
	superblock  bool // nothing else is read
	ignoreMinor bool
	asJSON      bool
}

// tool adds the options that era_check has as well.
func (c *eraCheck) tool(flags *pflag.FlagSet) {
	flags.BoolVarP(&c.quiet, "quiet", "q", false, "print nothing; the exit code tells")
	flags.BoolVar(&c.superblock, "super-block-only", false, "check the superblock only")
	flags.BoolVar(&c.ignoreMinor, "ignore-non-fatal-errors", false, "count only faults that cost data, not those that cost space or speed")
}

func newEraCheck() *cobra.Command {
	c := &eraCheck{}
	cmd := command{
		use: "check METADATA", short: "Check the metadata, and report every fault",
		long: `Reads every block of the live state and of the held metadata snapshot, and compares the space map with the references found. Every fault is printed with its severity and the byte offset, and the check goes on.

Faults are "lost" when they hide which blocks were written, "space" when the kernel may overwrite metadata in use, "minor" when they cost only space or speed. No era_check of thin-provisioning-tools looks at the space map; 0.9 aborts at the first damaged block.`,
		example: `tidemark era check /dev/vg/era-meta
tidemark era check --json era-meta.img`,
		exits: append(interruptible(), exitBusy, exitDamaged),
		args:  cobra.ExactArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			return c.run(cmd.Context(), args[0], cmd.OutOrStdout())
		},
	}.build()
	c.tool(cmd.Flags())
	addJSON(cmd, &c.asJSON, `one object: the faults, then "ok" and a summary`)
	return cmd
}

func (c *eraCheck) run(ctx context.Context, path string, out io.Writer) error {
	if c.quiet {
		out = io.Discard
	}
	report := c.text(out, path)
	if c.asJSON {
		report = jsonReport(out)
	}
	sum, err := c.check(ctx, path, report.fault)
	if err != nil {
		return err
	}
	bad := c.bad(sum)
	if err := report.end(sum, !bad); err != nil {
		return err
	}
	if bad {
		return told{hinted{
			fmt.Errorf("era: check: %s: %s: %w", path, verdict(sum), era.ErrDamaged),
			`"tidemark era repair" writes new metadata from what can be read`,
		}}
	}
	return nil
}

func (c *eraCheck) check(ctx context.Context, path string, fault func(*era.Fault)) (era.Summary, error) {
	in, err := openEra(ctx, path, false)
	if err != nil {
		return era.Summary{}, err
	}
	defer in.Close()
	if c.superblock {
		m, err := era.Open(in, in.dev.Size())
		if err != nil {
			return era.Summary{}, err
		}
		return era.Summary{Superblock: m.Superblock()}, nil
	}
	sum, err := era.Check(in, in.dev.Size(), func(f *era.Fault) {
		if ctx.Err() == nil { // which makes every block unreadable
			fault(f)
		}
	})
	if err == nil {
		err = context.Cause(ctx)
	}
	return sum, err
}

// bad says whether the faults make the check fail.
func (c *eraCheck) bad(sum era.Summary) bool {
	return sum.Faults > 0 && !(c.ignoreMinor && sum.Worst == era.SeverityMinor)
}

// checkReport prints a check. Its fault cannot fail; what could not be written
// is told by end.
type checkReport struct {
	fault func(*era.Fault)
	end   func(sum era.Summary, ok bool) error
}

func (c *eraCheck) text(out io.Writer, path string) checkReport {
	var failed error
	keep := func(_ int, err error) {
		if failed == nil {
			failed = err
		}
	}
	return checkReport{
		fault: func(f *era.Fault) { keep(fmt.Fprintf(out, "%s: %s\n", f.Severity, faultText(f))) },
		end: func(sum era.Summary, _ bool) error {
			s := sum.Superblock
			if s.BlockSectors > 0 {
				keep(fmt.Fprintf(out, "%s: era %d, %d blocks of %s, %s\n", path, s.Era, s.NrBlocks, size(s.BlockBytes()), verdict(sum)))
			}
			return failed
		},
	}
}

func verdict(sum era.Summary) string { return counted(int(sum.Faults)) }

// counted is a number of faults in words.
func counted(faults int) string {
	switch faults {
	case 0:
		return "no faults"
	case 1:
		return "1 fault"
	}
	return fmt.Sprintf("%d faults", faults)
}

// faultText says where and what, without the name of the package.
func faultText(f *era.Fault) string {
	s := fmt.Sprintf("%s at byte %d: %s", f.Object, f.Offset, f.Problem)
	if f.Effect != "" {
		s += " (" + f.Effect + ")"
	}
	return s
}

func jsonReport(out io.Writer) checkReport {
	list := jsonList{w: out, head: `{"faults":[`}
	var failed error
	return checkReport{
		fault: func(f *era.Fault) {
			if failed == nil {
				failed = list.addValue(f)
			}
		},
		end: func(sum era.Summary, ok bool) error {
			if failed != nil {
				return failed
			}
			return list.endSummary(ok, sum)
		},
	}
}
