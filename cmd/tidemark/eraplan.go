package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"tidemark/format/era"
)

// diskSize is a flag for the size of a disk or of its blocks, in the units of
// lvcreate and truncate: 16T is 16 TiB, 16TB is 16e12 bytes, 4096s is sectors.
type diskSize struct{ byteSize }

// Set implements pflag.Value.
func (d *diskSize) Set(s string) error {
	sectors, inSectors := strings.CutSuffix(s, "s")
	if inSectors {
		s = sectors
	} else if n := len(s); n > 0 && strings.ContainsRune("kKmMgGtTpP", rune(s[n-1])) {
		s += "iB"
	}
	err := d.byteSize.Set(s)
	if err != nil || inSectors && d.byteSize > math.MaxInt64/era.SectorSize {
		return errors.New("must be a size above zero, as 16T, 500GB, 2M or 4096s (sectors)")
	}
	if inSectors {
		d.byteSize *= era.SectorSize
	}
	return nil
}

// planBlockSize is the default of --block-size, the usual one: 4096 sectors.
const planBlockSize = 2 << 20

// eraPlan is the command line of "era plan".
type eraPlan struct {
	size, block diskSize
	options     era.PlanOptions
	asJSON      bool
}

func newEraPlan() *cobra.Command {
	p := &eraPlan{block: diskSize{planBlockSize}}
	cmd := command{
		use: "plan --size SIZE", short: "Compute how large the metadata of a device must be",
		long: `Computes how much metadata a device of SIZE needs, from how Linux 6.1 allocates it. Nothing is read or written.

Printed are the least size with which the device can be created; the range of the least with which snapshots can be taken and dropped on an idle device, from when the kernel digests all eras in between to when it digests none; and what is enough for any load while a snapshot is held. The last is recommended, rounded up to a MiB: dm-era cannot grow its metadata device; an era device whose metadata is full fails writes, and Linux 6.1 may stop with a BUG in dm-bufio when it is removed.

Sizes are in bytes, with K, M, G, T or P in powers of 1024 as for lvcreate, with KB to PB in powers of 1000, or with s in sectors of 512 bytes, in which dm-era counts.`,
		example: `tidemark era plan --size 16T --block-size 2M
# 4096 sectors are 2 MiB
tidemark era plan --size 500G --block-size 4096s --json`,
		args: func(cmd *cobra.Command, args []string) error {
			switch {
			case p.size.byteSize == 0:
				return errors.New("--size SIZE is needed")
			case p.block.byteSize%(8*era.SectorSize) != 0 || p.block.byteSize/era.SectorSize >= 1<<32:
				return fmt.Errorf("--block-size: %d bytes is no multiple of 4KiB below 2TiB", int64(p.block.byteSize))
			}
			return cobra.NoArgs(cmd, args)
		},
		run: func(cmd *cobra.Command, _ []string) error { return p.run(cmd.OutOrStdout()) },
	}.build()
	flags := cmd.Flags()
	flags.Var(&p.size, "size", "`size` of the data device")
	flags.Var(&p.block, "block-size", "`size` of the blocks in which writes are remembered, a multiple of 4KiB")
	flags.IntVar(&p.options.Snapshots, "snapshots", 10, "`number` of snapshots that are taken and dropped one after the other")
	flags.IntVar(&p.options.Undigested, "undigested", 10, "`number` of eras that may wait to be digested at the worst moment")
	addJSON(cmd, &p.asJSON, "one object, sizes in bytes")
	return cmd
}

func (p *eraPlan) run(out io.Writer) error {
	plan, err := era.NewPlan(int64(p.size.byteSize), uint32(p.block.byteSize/era.SectorSize), p.options)
	if err != nil {
		return usageError{err}
	}
	if p.asJSON {
		return printJSON(out, plan)
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "device\t%s in %d blocks of %s (%d sectors)\n", &p.size, plan.NrBlocks, &p.block, plan.BlockSectors)
	fmt.Fprintf(table, "to create it\t%s\n", kib(plan.Create))
	fmt.Fprintf(table, "for %d snapshots\t%s to %s\n", p.options.Snapshots, kib(plan.SnapshotsLeast), kib(plan.SnapshotsMost))
	fmt.Fprintf(table, "for any load\t%s\n", kib(plan.Worst))
	for _, part := range plan.Parts {
		fmt.Fprintf(table, "  %d blocks\t%s\n", part.Blocks, part.Why)
	}
	fmt.Fprintf(table, "recommended\t%s\n", kib(plan.Recommended))
	return table.Flush()
}

// kib prints a size of metadata, which is whole blocks of 4 KiB.
func kib(bytes int64) string { return fmt.Sprintf("%d KiB", bytes>>10) }
