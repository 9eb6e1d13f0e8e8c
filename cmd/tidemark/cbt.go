package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"tidemark/block"
	"tidemark/format/cbtmap"
)

func newCBT() *cobra.Command {
	return command{
		use: "cbt", short: "Read change-tracking maps of blksnap",
		long:    `The driver blksnap keeps a map with one byte for each block of a device: the number of the snapshot before which the block was last written to. "blksnap readcbtmap" writes it to a file.`,
		example: `tidemark cbt changes vdb.map --since 3 --number 4 --device /dev/vdb`,
	}.build(newCBTChanges())
}

// cbtChanges is the command line of "cbt changes".
type cbtChanges struct {
	since           int
	sinceGeneration string
	number          int
	generation      string
	device          string
	deviceSize      byteSize
	blockSize       byteSize
	asJSON          bool
}

// certainBlocks is the number of blocks up to which the driver's choice of their size is
// certain: with more of them the device may be larger.
const certainBlocks = 1 << 20

func newCBTChanges() *cobra.Command {
	c := &cbtChanges{}
	cmd := command{
		use: "changes MAP", short: "Print which parts of a device changed since a snapshot, as a map has it",
		long: `Prints the parts of the device that were written to since the snapshot with the number --since, one a line: offset and length in bytes. --since 0 is the time since the tracking began.

A number says nothing after the map began anew, which it does after 255 snapshots, and when the device was resized. That is found when --number, and --generation with --since-generation, are given, as "blksnap cbtinfo" told them of the map and of the snapshot. Then, and for a number that is above those of the map, the command ends with exit code 4: everything may have changed.

Without --device or --device-size the map is that of a device of whole blocks of 64 KiB, which is what the driver chooses up to 64 GiB; for a larger map one of them, or --block-size, is needed.`,
		example: `blksnap readcbtmap -d /dev/vdb -f vdb.map
tidemark cbt changes vdb.map --since 3 --number 4 --device /dev/vdb`,
		exits: []exitCode{exitMarkLost, exitDamaged},
		args: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("since") {
				return errors.New("--since NUMBER is needed")
			}
			return cobra.ExactArgs(1)(cmd, args)
		},
		run: func(cmd *cobra.Command, args []string) error { return c.run(cmd, args[0]) },
	}.build()
	flags := cmd.Flags()
	flags.IntVar(&c.since, "since", 0, "the `number` of the snapshot to start from")
	flags.StringVar(&c.sinceGeneration, "since-generation", "", "the `generation` that the map had then")
	flags.IntVar(&c.number, "number", 0, "the `number` of the map, as cbtinfo tells it (changes number)")
	flags.StringVar(&c.generation, "generation", "", "the `generation` of the map, as cbtinfo tells it")
	flags.StringVar(&c.device, "device", "", "the `device` that the map is of, for its size")
	addSize(cmd, &c.deviceSize, "device-size", "the size of that device")
	addSize(cmd, &c.blockSize, "block-size", "the size of a block of the map; by default what the driver chooses for the size of the device")
	addJSON(cmd, &c.asJSON, "one object")
	return cmd
}

func (c *cbtChanges) run(cmd *cobra.Command, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info := cbtmap.Info{BlockSize: int64(c.blockSize), Number: c.number, Generation: c.generation}
	if info.Device, err = c.deviceBytes(f); err != nil {
		return err
	}
	if err := info.Since(c.since, c.sinceGeneration); err != nil {
		return err
	}
	set, err := cbtmap.Changes(f, info, c.since)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return printSet(cmd.OutOrStdout(), set, c.asJSON)
}

// deviceBytes returns the size of the device: as was said, or as the map tells.
func (c *cbtChanges) deviceBytes(f *os.File) (int64, error) {
	if c.device != "" {
		d, err := block.Open(c.device, block.Options{})
		if err != nil {
			return 0, err
		}
		return d.Size(), d.Close()
	}
	if c.deviceSize > 0 {
		return int64(c.deviceSize), nil
	}
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	blocks, size := info.Size(), int64(c.blockSize)
	if size == 0 && blocks > certainBlocks {
		return 0, usagef("a map of %d blocks does not tell the size of its device: give it with --device or --device-size", blocks)
	}
	if size == 0 {
		size = cbtmap.BlockSize(0)
	}
	if size > 1<<40 || blocks > 1<<20 && size > 1<<30 {
		return 0, usagef("--block-size %d is too large", size)
	}
	return blocks * size, nil
}
