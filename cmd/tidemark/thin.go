package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"tidemark/block"
	"tidemark/format/thin"
	"tidemark/linux/dm"
	"tidemark/linux/dmthin"
	"tidemark/linux/sysfs"
)

func newThin(g *globals) *cobra.Command {
	return command{
		use: "thin", short: "Read the metadata of thin pools",
		long: `Reads the metadata of dm-thin pools, LVM's among them: which volumes there are, what they map, and what differs between two of them.

METADATA is the metadata device of a pool that is not in use, an image of it, or the device of a pool in use, or of a volume of one: of these the kernel's metadata snapshot is taken, read, and released, also after a crash. With --metadata-snap METADATA is the metadata device of a pool in use, of which somebody has taken the snapshot ("dmsetup message POOL 0 reserve_metadata_snap").

The programs thin_delta, thin_dump, thin_check and thin_ls of thin-provisioning-tools print the same; tidemark answers to these names.`,
		example: `tidemark thin ls /dev/vg/pool_tmeta
tidemark thin delta --snap1 3 --snap2 7 /dev/vg/pool_tmeta`,
	}.build(newThinDelta(g), newThinDump(g), newThinCheck(), newThinLs(g))
}

// snapshotFlag asks for the metadata snapshot that is held, or for that at a block.
type snapshotFlag struct {
	asked bool
	block uint64 // 0: the one that is held
}

const heldSnapshot = "held"

func (s *snapshotFlag) String() string {
	if s.block > 0 {
		return strconv.FormatUint(s.block, 10)
	}
	return ""
}

func (s *snapshotFlag) Type() string { return "block" }

// Set implements pflag.Value.
func (s *snapshotFlag) Set(text string) (err error) {
	s.asked = true
	if text == heldSnapshot {
		return nil
	}
	if s.block, err = strconv.ParseUint(text, 10, 63); err != nil || s.block == 0 {
		return fmt.Errorf("%q is no block of metadata", text)
	}
	return nil
}

func (s *snapshotFlag) add(flags *pflag.FlagSet) {
	flags.VarP(s, "metadata-snap", "m", "read the metadata snapshot, which a pool in use leaves alone: the one that is held, or that at a `block`")
	flags.Lookup("metadata-snap").NoOptDefVal = heldSnapshot
}

// thinSource is what a command reads metadata of. Without globals it takes no metadata snapshots, as
// the tools do not.
type thinSource struct {
	snapshot snapshotFlag
	g        *globals
}

// open opens the metadata of a pool, and the state that is to be read. Where path is a pool in use,
// or a volume of one, its metadata snapshot is taken, and released by the function that is
// returned.
func (t thinSource) open(ctx context.Context, path string) (*metadataInput, *thin.View, func() error, error) {
	if t.g != nil && !t.snapshot.asked {
		held, closers, err := t.hold(path)
		switch {
		case err == nil:
			in := &metadataInput{held.Device(), ctx}
			v, err := thin.Open(in, held.Device().Size())
			if err != nil {
				return nil, nil, nil, errors.Join(err, closers())
			}
			view, err := v.Snapshot()
			if err != nil {
				return nil, nil, nil, errors.Join(err, closers())
			}
			return in, view, closers, nil
		case !errors.Is(err, dmthin.ErrNotPool):
			return nil, nil, nil, err
		}
	}
	in, err := openMetadata(ctx, "thin", path, t.snapshot.asked)
	if err != nil {
		return nil, nil, nil, err
	}
	m, err := thin.Open(in, in.dev.Size())
	if err != nil {
		return nil, nil, nil, errors.Join(err, in.Close())
	}
	v := m.Live()
	switch {
	case t.snapshot.block > 0:
		v, err = m.SnapshotAt(thin.Addr(t.snapshot.block))
	case t.snapshot.asked:
		v, err = m.Snapshot()
	}
	if err != nil {
		return nil, nil, nil, errors.Join(err, in.Close())
	}
	return in, v, in.Close, nil
}

// hold takes the metadata snapshot of the pool in use that path is, or belongs to. The error wraps
// dmthin.ErrNotPool where there is none.
func (t thinSource) hold(path string) (*dmthin.Held, func() error, error) {
	if id, err := block.Identify(path); err != nil || !sysfs.IsMapped(id.Disk) {
		return nil, nil, dmthin.ErrNotPool
	}
	ctl, err := dm.Open()
	if err != nil {
		return nil, nil, err
	}
	pool, _, err := dmthin.Find(ctl, path)
	if err != nil {
		return nil, nil, errors.Join(err, ctl.Close())
	}
	held, err := pool.Hold(ctl, dmthin.Options{RunDir: t.g.runDir, StateDir: t.g.stateDir})
	if err != nil {
		return nil, nil, errors.Join(err, ctl.Close())
	}
	return held, func() error { return errors.Join(held.Close(), ctl.Close()) }, nil
}

// thinDump is the command line of "thin dump".
type thinDump struct {
	g            *globals
	snapshot     snapshotFlag
	format       choice
	output       string
	devices      []uint
	skipMappings bool
	lenient      bool // a device that does not exist is left out, as by thin_dump
	override     func(*thin.Superblock)
}

func (d *thinDump) tool(flags *pflag.FlagSet) {
	d.format = choice{"xml", []string{"xml", "human_readable"}}
	d.snapshot.add(flags)
	flags.VarP(&d.format, "format", "f", "how it looks: xml is what thin_restore reads")
	flags.StringVarP(&d.output, "output", "o", "", "`file` to write to instead of standard output; it is replaced at once when all went well")
	flags.UintSliceVar(&d.devices, "dev-id", nil, "dump only the device with this `number`; may be given several times")
	flags.BoolVar(&d.skipMappings, "skip-mappings", false, "leave out what the devices map")
}

func newThinDump(g *globals) *cobra.Command {
	d := &thinDump{g: g}
	cmd := command{
		use: "dump METADATA", short: "Print all of the metadata as XML",
		long: `Prints the XML of thin_dump 0.9, which every thin_restore reads: the superblock, the devices and what they map. It ends at the first damage that it meets; nothing is repaired. With --metadata-snap the number of data blocks is that of the pool; thin_dump prints 0, which cannot be restored.`,
		example: `tidemark thin dump /dev/vg/pool_tmeta -o pool.xml
tidemark thin dump --metadata-snap --dev-id 3 /dev/mapper/vg-pool_tmeta`,
		exits: append(interruptible(), exitRefused, exitBusy, exitDamaged),
		args:  cobra.ExactArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			return d.run(cmd.Context(), args[0], cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}.build()
	d.tool(cmd.Flags())
	return cmd
}

func (d *thinDump) run(ctx context.Context, path string, out, _ io.Writer) (err error) {
	in, v, release, err := thinSource{d.snapshot, d.g}.open(ctx, path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	o := thin.DumpOptions{SkipMappings: d.skipMappings, Lenient: d.lenient, Override: d.override}
	if d.format.value != "xml" {
		o.Format = thin.Text
	}
	for _, id := range d.devices {
		o.Devices = append(o.Devices, uint32(min(id, 1<<31)))
	}
	return writeText(out, d.output, in, func(w io.Writer) error {
		if err := v.Dump(w, o); err != nil {
			return err
		}
		return v.Recheck()
	})
}

// thinCheck is the command line of "thin check".
type thinCheck struct {
	snapshot     snapshotFlag
	quiet        bool
	superblock   bool
	skipMappings bool
	ignoreMinor  bool
	asJSON       bool
}

func (c *thinCheck) tool(flags *pflag.FlagSet) {
	c.snapshot.add(flags)
	flags.BoolVarP(&c.quiet, "quiet", "q", false, "print nothing; the exit code tells")
	flags.BoolVar(&c.superblock, "super-block-only", false, "check the superblock only")
	flags.BoolVar(&c.skipMappings, "skip-mappings", false, "leave out the mappings, and the space maps, which count them")
	flags.BoolVar(&c.ignoreMinor, "ignore-non-fatal-errors", false, "count only faults that cost data, not those that cost space or speed")
}

func newThinCheck() *cobra.Command {
	c := &thinCheck{}
	cmd := command{
		use: "check METADATA", short: "Check the metadata of a pool, and report every fault",
		long: `Reads the details and the mappings of all devices, of the live state and of the held metadata snapshot, and compares both space maps, of the metadata and of the data blocks, with the references found. Every fault is printed with its severity and the byte offset, and the check goes on.

Faults are "lost" when they hide or spoil mappings, "space" when the kernel may overwrite blocks that are in use, "minor" when they cost only space or speed. With --metadata-snap only the trees of the metadata snapshot are checked.`,
		example: `tidemark thin check /dev/vg/pool_tmeta
tidemark thin check --json pool.img`,
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

func (c *thinCheck) run(ctx context.Context, path string, out io.Writer) error {
	if c.quiet {
		out = io.Discard
	}
	faults := []*thin.Fault{}
	sum, err := c.check(ctx, path, func(f *thin.Fault) { faults = append(faults, f) })
	if err != nil {
		return err
	}
	bad := c.bad(sum)
	if c.asJSON {
		err = printJSON(out, struct {
			Faults  []*thin.Fault `json:"faults"`
			OK      bool          `json:"ok"`
			Summary thin.Summary  `json:"summary"`
		}{faults, !bad, sum})
	} else {
		err = c.print(out, path, faults, sum)
	}
	if err == nil && bad {
		err = told{fmt.Errorf("thin: check: %s: %s: %w", path, counted(sum.Faults), thin.ErrDamaged)}
	}
	return err
}

func (c *thinCheck) print(out io.Writer, path string, faults []*thin.Fault, sum thin.Summary) error {
	for _, f := range faults {
		if _, err := fmt.Fprintf(out, "%s: %s\n", f.Severity, faultText(f)); err != nil {
			return err
		}
	}
	check := ""
	if sum.Superblock.NeedsCheck {
		check = ", the kernel asks for a check"
	}
	_, err := fmt.Fprintf(out, "%s: transaction %d, %d devices, %d mapped blocks of %s%s, %s\n", path, sum.Superblock.Transaction,
		sum.Devices, sum.Mapped, size(sum.Superblock.BlockBytes()), check, counted(sum.Faults))
	return err
}

func (c *thinCheck) check(ctx context.Context, path string, fault func(*thin.Fault)) (thin.Summary, error) {
	in, err := openMetadata(ctx, "thin", path, c.snapshot.asked)
	if err != nil {
		return thin.Summary{}, err
	}
	defer in.Close()
	m, err := thin.Open(in, in.dev.Size())
	if err != nil {
		return thin.Summary{}, err
	}
	if c.superblock {
		return thin.Summary{Superblock: m.Superblock()}, nil
	}
	sum, err := m.Check(thin.CheckOptions{SkipMappings: c.skipMappings, Snapshot: c.snapshot.asked, Report: func(f *thin.Fault) {
		if ctx.Err() == nil { // which makes every block unreadable
			fault(f)
		}
	}})
	if err == nil {
		err = context.Cause(ctx)
	}
	return sum, err
}

// bad says whether the faults make the check fail.
func (c *thinCheck) bad(sum thin.Summary) bool {
	return sum.Faults > 0 && !(c.ignoreMinor && sum.Worst == thin.Minor)
}
