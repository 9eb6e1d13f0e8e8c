package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/format/era"
	"tidemark/transfer/apply"
)

// otherTools lists the programs that are none of thin-provisioning-tools, by name.
// era_copy and era_apply copy changed ranges. They take no options but --progress, first,
// and those that every program answers; the output of era_copy without a device is read by
// scripts.
func otherTools() map[string]func(ctx context.Context, args []string, std stdio) error {
	return map[string]func(ctx context.Context, args []string, std stdio) error{
		"era_copy": asEraCopy, "era_apply": asEraApply, "dm-merge": asDMMerge,
		"update-img": asUpdateImg("update-img"), "img-merge": asUpdateImg("img-merge"), "dbdctl": asDbdctl,
	}
}

const eraCopyUsage = `era_copy (tidemark) writes the blocks that era_invalidate lists as a stream for era_apply.

Usage:
era_invalidate --metadata-snapshot --written-since <era> <metadata device> |
    era_copy [--progress] <block size> [<data device>] > stream

The block size is the last number of "dmsetup table", in sectors of 512 bytes.
Without a data device only the number of bytes to copy is printed.
`

const eraApplyUsage = `era_apply (tidemark) brings the stream of era_copy to a file or block device.

Usage:
era_apply [--progress] <file or device> < stream
`

// rangeCall is the command line of such a program.
type rangeCall struct {
	progress bool
	answered bool // all that was asked for was printed
	args     []string
}

// parseRange splits off the options. Any other word that begins with a dash is a
// mistake, and not the name of a file: ./-x is.
func parseRange(name, usage string, args []string, std stdio) (c rangeCall, err error) {
	for _, a := range args {
		switch {
		case a == "-h" || a == "--help":
			_, err = fmt.Fprint(std.out, usage)
			return rangeCall{answered: true}, err
		case a == "-V" || a == "--version":
			_, err = fmt.Fprintf(std.out, "%s (tidemark %s)\n", name, versionText())
			return rangeCall{answered: true}, err
		}
	}
	if len(args) > 0 && args[0] == "--progress" {
		c.progress, args = true, args[1:]
	}
	for _, a := range args {
		if strings.HasPrefix(a, "-") {
			fmt.Fprint(std.errs, usage)
			return c, fmt.Errorf("%s: unknown option %s; a file of that name is ./%s", name, a, a)
		}
	}
	if len(args) == 0 {
		fmt.Fprint(std.errs, usage)
		return c, errQuiet
	}
	c.args = args
	return c, nil
}

func asEraCopy(ctx context.Context, args []string, std stdio) error {
	c, err := parseRange("era_copy", eraCopyUsage, args, std)
	if err != nil || c.answered {
		return err
	}
	args = c.args
	sectors, err := strconv.ParseUint(args[0], 10, 31)
	if err != nil || sectors == 0 {
		return fmt.Errorf("incorrect era_block_size = %s", args[0])
	}
	blockSize := int64(sectors) * era.SectorSize
	var src *block.Device
	if len(args) > 1 {
		if src, err = block.Open(args[1], block.Options{Direct: true}); err != nil {
			return fmt.Errorf("failed to open %s for reading: %w", args[1], err)
		}
		defer src.Close()
	}
	list, err := patiently(ctx, func() (blockList, error) { return readList(std.in) })
	if errors.Is(err, io.EOF) {
		fmt.Fprintln(std.errs, "Input block list is empty")
		return nil
	}
	if err != nil {
		return err
	}
	set, err := list.toBytes(blockSize)
	if err != nil {
		return err
	}
	if src == nil {
		_, err := fmt.Fprintf(std.out, "%d bytes to copy\n", set.Bytes())
		return err
	}
	set = set.Clip(extent.Extent{Len: src.Size()})
	_, err = writeStreamTo(ctx, std.out, src, set, newProgress(std.errs, !c.progress))
	return err
}

func asEraApply(ctx context.Context, args []string, std stdio) error {
	c, err := parseRange("era_apply", eraApplyUsage, args, std)
	if err != nil || c.answered {
		return err
	}
	a := &eraApply{grow: true, progress: c.progress, mode: 0o644}
	err = a.run(ctx, c.args[0], fromEnvironment().stateDir, std)
	if errors.Is(err, apply.ErrPending) {
		err = fmt.Errorf("%w\n%s", err, hintOf(err))
	}
	return err
}
