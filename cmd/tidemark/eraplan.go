package main

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"tidemark/format/era"
	"tidemark/linux/dmera"
)

// eraPlan is the command line of "era plan".
type eraPlan struct {
	size, block byteSize
	options     era.PlanOptions
	asJSON      bool
}

func newEraPlan() *cobra.Command {
	p := &eraPlan{block: dmera.DefaultBlockSize}
	cmd := command{
		use: "plan --size SIZE", short: "Compute how large the metadata of a device must be",
		long: `Computes how much metadata a device of SIZE needs, from how Linux 6.1 allocates it. Nothing is read or written.

Printed are the least size with which the device can be created; the range of the least with which snapshots can be taken and dropped on an idle device, from when the kernel digests all eras in between to when it digests none; and what is enough for any load while a snapshot is held. The last is recommended, rounded up to a MiB: dm-era cannot grow its metadata device; an era device whose metadata is full fails writes, and Linux 6.1 may stop with a BUG in dm-bufio when it is removed.`,
		example: `tidemark era plan --size 16T --block-size 2M
# 4096 sectors are 2 MiB
tidemark era plan --size 500G --block-size 4096s --json`,
		args: func(cmd *cobra.Command, args []string) error {
			switch {
			case p.size == 0:
				return errors.New("--size SIZE is needed")
			case p.block%(8*era.SectorSize) != 0 || p.block/era.SectorSize >= 1<<32:
				return fmt.Errorf("--block-size: %d bytes is no multiple of 4K below 2T", int64(p.block))
			}
			return cobra.NoArgs(cmd, args)
		},
		run: func(cmd *cobra.Command, _ []string) error { return p.run(cmd.OutOrStdout()) },
	}.build()
	flags := cmd.Flags()
	addSize(cmd, &p.size, "size", "`size` of the data device")
	addSize(cmd, &p.block, "block-size", "`size` of the blocks in which writes are remembered, a multiple of 4K")
	flags.IntVar(&p.options.Snapshots, "snapshots", 10, "`number` of snapshots that are taken and dropped one after the other")
	flags.IntVar(&p.options.Undigested, "undigested", 10, "`number` of eras that may wait to be digested at the worst moment")
	addJSON(cmd, &p.asJSON, "one object, sizes in bytes")
	return cmd
}

func (p *eraPlan) run(out io.Writer) error {
	plan, err := era.NewPlan(int64(p.size), uint32(p.block/era.SectorSize), p.options)
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
