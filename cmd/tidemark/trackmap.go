package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/format/cbtmap"
	"tidemark/linux/atomicfile"
	"tidemark/track"
	"tidemark/track/bpf"
	"tidemark/track/history"
	"tidemark/transfer/names"
)

// mapped is what "track map" says.
type mapped struct {
	Device     string     `json:"device"`
	Size       int64      `json:"device_size"` // bytes
	BlockSize  int64      `json:"block_size"`  // bytes
	Blocks     int64      `json:"blocks"`
	Generation string     `json:"generation"`
	Number     int        `json:"number"`
	Until      track.Mark `json:"until"`
}

func newTrackMap(g *globals) *cobra.Command {
	var asJSON bool
	cmd := command{
		use: "map DEVICE FILE", short: "Write what changed as a map of the driver blksnap",
		long: `Writes to FILE, in place of what it was, the bytes that the driver blksnap has in its map of changes: one for each block of DEVICE, with the number of the epoch in which the block changed last; 0 if it did not. It ends the epoch, and prints the map's generation and number, as "blksnap cbtinfo" does, and the mark of this moment, which is kept as by "track start".

As with the driver: keep generation and number with a copy, and the next map of the same generation tells what changed since, by the bytes above that number. The mark bpf:G:N is that of the number N-1 in the generation G. After 255 epochs the map begins anew, with the generations G.1, G.2 and so on, and the numbers of another generation tell nothing; marks go on ("tidemark track changes"). Any earlier number of the generation can be asked: where no mark is kept of it, too much is told, and never too little.`,
		example: `tidemark track map /dev/vdb vdb.map
tidemark cbt changes vdb.map --since 3 --number 5 --device /dev/vdb`,
		exits: []exitCode{exitMarkLost},
		args:  cobra.ExactArgs(2),
		run: func(cmd *cobra.Command, args []string) error {
			device, err := names.Source(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			m, err := writeMap(cmd, device, args[1], g.trackOptions())
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), m)
			}
			return m.print(cmd.OutOrStdout())
		},
	}.build()
	addJSON(cmd, &asJSON, "one object")
	return cmd
}

func (m mapped) print(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "generation\t%s\nnumber\t%d\nblocks\t%d of %s\nmark\t%s\n", m.Generation, m.Number, m.Blocks, size(m.BlockSize), m.Until)
	return table.Flush()
}

func writeMap(cmd *cobra.Command, device, path string, o bpf.Options) (m mapped, err error) {
	ctx := cmd.Context()
	if fi, err := os.Stat(path); err == nil && !fi.Mode().IsRegular() {
		return m, usagef("%s is not a file: name one to write the map to", path)
	}
	source, err := block.Open(device, block.Options{})
	if err != nil {
		return m, fmt.Errorf("track: %w", err)
	}
	live, err := bpf.Attach(ctx, source, o)
	m = mapped{Device: device, Size: source.Size(), BlockSize: cbtmap.BlockSize(source.Size())}
	if err := errors.Join(err, source.Close()); err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, live.Close()) }()
	cut, err := live.Cut(ctx)
	if err != nil {
		return m, err
	}
	now, err := history.ParseMark(cut.Mark, bpf.Kind)
	if err != nil {
		return m, err
	}
	m.Until, m.Generation = cut.Mark, now.Generation
	cycle, number := cbtmap.Position(now.Epoch - 1)
	if m.Number = number; cycle > 0 {
		m.Generation += "." + strconv.FormatUint(cycle, 10)
	}
	blocks, err := cbtmap.New(cbtmap.Info{Device: m.Size, Number: number})
	if err != nil {
		return m, err
	}
	err = live.EachEpoch(ctx, cut.Mark, func(epoch uint64, set extent.Set) error {
		if c, n := cbtmap.Position(epoch); c == cycle {
			return blocks.Add(n, set)
		}
		return nil // 0: before this generation
	})
	if err != nil {
		return m, err
	}
	err = atomicfile.Write(path, atomicfile.Options{Mode: 0o600}, func(f *os.File) (err error) {
		m.Blocks, err = blocks.WriteTo(f)
		return err
	})
	if err != nil {
		return m, err
	}
	if err := live.Remember(ctx, cut.Mark); err != nil {
		return m, err
	}
	return m, live.Persist(ctx)
}
