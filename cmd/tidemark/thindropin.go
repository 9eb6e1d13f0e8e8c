package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/pflag"

	"tidemark/format/thin"
)

// thinDropIns lists the thin programs of thin-provisioning-tools that read. The lines of
// usage are those of 0.9; what 1.x added comes last.
func thinDropIns() map[string]dropIn {
	return map[string]dropIn{
		"thin_dump": dropInThinDump(), "thin_delta": dropInThinDelta(), "thin_check": dropInThinCheck(), "thin_ls": dropInThinLs(),
	}
}

func dropInThinDump() dropIn {
	d, repair := &thinDump{lenient: true}, false
	return dropIn{
		usage: []string{
			"thin_dump [options] {device|file}", "{-h|--help}", "{-f|--format} {xml|human_readable}",
			"{-m|--metadata-snap} [block#]", "{-o|--output} <xml file>", "{--dev-id} <dev-id>", "{--skip-mappings}", "{-V|--version}", "{-q|--quiet}", "{-r|--repair}",
			"{--transaction-id} <number>", "{--data-block-size} <sectors>", "{--nr-data-blocks} <number>",
		},
		input: true,
		run: func(ctx context.Context, path string, out, errs io.Writer) error {
			err := d.run(ctx, path, out, errs)
			if errors.Is(err, thin.ErrDamaged) && repair {
				err = fmt.Errorf("%w\nthis program does not repair: use thin_dump of thin-provisioning-tools", err)
			}
			return err
		},
		flags: func(flags *pflag.FlagSet) {
			d.tool(flags)
			flags.BoolP("quiet", "q", false, "")
			flags.BoolVarP(&repair, "repair", "r", false, "")
			transaction := flags.Uint64("transaction-id", 0, "")
			sectors := flags.Uint32("data-block-size", 0, "")
			blocks := flags.Uint64("nr-data-blocks", 0, "")
			d.override = func(s *thin.Superblock) {
				if flags.Changed("transaction-id") {
					s.Transaction = *transaction
				}
				if flags.Changed("data-block-size") {
					s.BlockSectors = *sectors
				}
				if flags.Changed("nr-data-blocks") {
					s.Data.Blocks = *blocks
				}
			}
		},
	}
}

func dropInThinDelta() dropIn {
	d := &thinDelta{}
	return dropIn{
		usage: []string{
			"thin_delta [options] <device or file>", "{--thin1, --snap1}", "{--thin2, --snap2}", "{-m, --metadata-snap} [block#]",
			"{--verbose}", "{-h|--help}", "{-V|--version}", "{--root1} <block#>", "{--root2} <block#>",
		},
		input: true, flags: d.tool, lacks: d.lacks, run: d.run,
	}
}

func dropInThinLs() dropIn {
	l := &thinLs{}
	return dropIn{
		usage: append([]string{
			"thin_ls [options] {metadata device}", "{-h|--help}", "{-m|--metadata-snap}", "{--no-headers}",
			"{-o|--format <fields>}", "{-V|--version}", "\nwhere <fields> is a comma separated list from:",
		}, thinFields...),
		input: true, flags: l.tool, run: l.run,
	}
}

func dropInThinCheck() dropIn {
	c := &thinCheck{}
	return dropIn{
		usage: []string{
			"thin_check [options] {device|file}", "{-q|--quiet}", "{-h|--help}", "{-V|--version}", "{-m|--metadata-snap}",
			"{--ignore-non-fatal-errors}", "{--skip-mappings}", "{--super-block-only}",
		},
		input: true, run: c.runAsTool,
		flags: func(flags *pflag.FlagSet) {
			c.tool(flags)
			const writes = "it changes metadata, which this program does not: use that of thin-provisioning-tools"
			refuseOption(flags, "auto-repair", "", writes)
			refuseOption(flags, "clear-needs-check-flag", "", writes)
			const roots = "only the roots of the superblock, or of a metadata snapshot, are checked"
			refuseOption(flags, "override-mapping-root", "", roots)
			refuseOption(flags, "override-details-root", "", roots)
		},
	}
}

// runAsTool prints as thin_check 0.9 does.
func (c *thinCheck) runAsTool(ctx context.Context, path string, out, errs io.Writer) error {
	if c.quiet {
		out, errs = io.Discard, io.Discard
	}
	fmt.Fprintln(errs, "examining superblock")
	sum, err := c.check(ctx, path, func(f *thin.Fault) { fmt.Fprintf(errs, "  %s\n", faultText(f)) })
	switch {
	case errors.Is(err, thin.ErrNotThin), errors.Is(err, thin.ErrNewer), errors.Is(err, thin.ErrDamaged):
		fmt.Fprintf(errs, "  superblock is corrupt\n    %v\n", err)
		return errQuiet
	case err != nil:
		return err
	}
	s := sum.Superblock
	fmt.Fprintf(out, "TRANSACTION_ID=%d\nMETADATA_FREE_BLOCKS=%d\n", s.Transaction, s.Metadata.Blocks-min(s.Metadata.Allocated, s.Metadata.Blocks))
	switch {
	case c.superblock:
	case c.skipMappings:
		fmt.Fprintf(errs, "examining devices tree\nexamining top level of mapping tree\n")
	default:
		fmt.Fprintf(errs, "examining devices tree\nexamining mapping tree\nchecking space map counts\n")
	}
	if c.bad(sum) {
		return errQuiet
	}
	return nil
}

// refuseOption makes an option of the tools one that is refused with a reason.
func refuseOption(flags *pflag.FlagSet, name, short, why string) {
	flags.VarP(refused(why), name, short, "")
	flags.Lookup(name).NoOptDefVal = "true"
}

// refused is a flag that cannot be given.
type refused string

func (r refused) String() string   { return "" }
func (r refused) Type() string     { return "" }
func (r refused) Set(string) error { return errors.New(string(r)) }
