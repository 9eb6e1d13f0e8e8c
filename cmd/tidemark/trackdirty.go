package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/linux/fiemap"
	"tidemark/linux/mounts"
	"tidemark/track/bpf"
	"tidemark/transfer/names"
)

func newTrackMarkDirty(g *globals) *cobra.Command {
	var ranges, files []string
	cmd := command{
		use: "mark-dirty DEVICE", short: "Count bytes as changed that nobody was seen to write",
		long: `Counts ranges of DEVICE, or where files lie on it, as changed from now on: for what has changed without passing DEVICE, as by a program that writes to what is below it. The next "tidemark mirror" reads them.

DEVICE has to be tracked ("tidemark track start"). A file has to lie on DEVICE itself; a file whose blocks are shared, compressed or inline is refused, and so is one on Btrfs, whose offsets are its own.`,
		example: `tidemark track mark-dirty /dev/vdb --range 1M+64K --range 0+4K
tidemark track mark-dirty /dev/vdb --file /srv/disk.img`,
		exits: []exitCode{exitMarkLost, exitRefused},
		args:  cobra.ExactArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			if len(ranges)+len(files) == 0 {
				return usageError{errors.New("give --range or --file")}
			}
			device, err := names.Source(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			source, err := block.Open(device, block.Options{})
			if err != nil {
				return fmt.Errorf("track: %w", err)
			}
			defer source.Close()
			set, err := dirtySet(source, ranges, files)
			if err != nil {
				return err
			}
			return markDirty(cmd.Context(), source, set, g.trackOptions())
		},
	}.build()
	cmd.Flags().StringArrayVar(&ranges, "range", nil, "bytes of DEVICE, as `offset+length`, with units as 64K")
	cmd.Flags().StringArrayVar(&files, "file", nil, "`path` of a file that lies on DEVICE")
	return cmd
}

// dirtySet are ranges, and where files lie on the device.
func dirtySet(source *block.Device, ranges, files []string) (extent.Set, error) {
	var found []extent.Extent
	for _, text := range ranges {
		var off, length byteSize
		before, after, ok := strings.Cut(text, "+")
		if !ok || before != "0" && off.Set(before) != nil || length.Set(after) != nil {
			return extent.Set{}, usageError{fmt.Errorf("--range %q: want OFFSET+LENGTH", text)}
		}
		found = append(found, extent.Extent{Off: int64(off), Len: int64(length)})
	}
	for _, path := range files {
		table, err := mounts.Read()
		if err != nil {
			return extent.Set{}, err
		}
		f, err := table.Of(path)
		if err != nil {
			return extent.Set{}, err
		}
		if f.Type == "btrfs" || f.Dev != source.Identity().Dev() {
			return extent.Set{}, fmt.Errorf("%s: %w: it lies on %s, and not on %s itself", path, fiemap.ErrUnfit, f, source.Path())
		}
		extents, err := extentsOf(path)
		if err != nil {
			return extent.Set{}, err
		}
		for _, e := range extents {
			found = append(found, extent.Extent{Off: e.Physical, Len: e.Len})
		}
	}
	return extent.NewSet(found...), nil
}

func extentsOf(path string) ([]fiemap.Extent, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return fiemap.Of(f)
}

func markDirty(ctx context.Context, source *block.Device, set extent.Set, o bpf.Options) (err error) {
	live, err := bpf.Attach(ctx, source, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, live.Close()) }()
	return live.MarkDirty(ctx, set)
}
