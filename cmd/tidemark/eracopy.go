package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/transfer/export"
)

// pipeSize is what a pipe is asked to hold, in bytes: the most that is allowed to
// everybody by default (/proc/sys/fs/pipe-max-size).
const pipeSize = 1 << 20

// errList says that a list of blocks is not one of the device.
var errList = errors.New("the list does not fit the device")

// eraCopy is the command line of "era copy".
type eraCopy struct {
	list     string // path, "" and "-" for standard input
	block    byteSize
	metadata string
	dryRun   bool
	progress bool
	asJSON   bool
}

func newEraCopy(g *globals) *cobra.Command {
	c := &eraCopy{}
	cmd := command{
		use: "copy DEVICE", short: "Write the blocks of a list as a stream to standard output",
		long: `Reads a list of blocks, as "tidemark era invalidate" and every era_invalidate print it, from standard input, and writes those blocks of DEVICE, the era device or an image of it, to standard output: the stream of era_copy, for "tidemark era apply" or era_apply. Neighbouring blocks become one record. Nothing is written before the list is complete.

How large a block is, is told by a list in JSON, by --block-size, by --metadata, or by the kernel when DEVICE is an active era device, in this order. A block that crosses the end of DEVICE is cut there; a list with blocks behind it is of another device, and is refused.

DEVICE is read past the page cache. What is written to it meanwhile may be in the stream or not: freeze the filesystem, or copy again with what changed since. "tidemark mirror" does all of it by itself.

The stream has no end mark and no checksums: see that both ends of the pipe succeed ("set -o pipefail").`,
		example: `tidemark era invalidate --json --written-since 12 --metadata-snapshot /dev/vg/era-meta | tidemark era copy /dev/mapper/data-era | ssh backup tidemark era apply /backup/data.img
# How much would it be?
tidemark era copy --dry-run --list list.xml --block-size 512K /dev/mapper/data-era`,
		exits: append(interruptible(), exitRefused, exitDamaged),
		args: func(cmd *cobra.Command, args []string) error {
			if c.asJSON && !c.dryRun {
				return errors.New("--json goes with --dry-run; otherwise standard output is the stream")
			}
			return cobra.ExactArgs(1)(cmd, args)
		},
		run: func(cmd *cobra.Command, args []string) error { return c.run(cmd, args[0], g) },
	}.build()
	flags := cmd.Flags()
	flags.StringVar(&c.list, "list", "", "`file` with the list, instead of standard input")
	addSize(cmd, &c.block, "block-size", "`size` of the era device's blocks, as 512K")
	flags.StringVar(&c.metadata, "metadata", "", "metadata `device`, or an image of it, that tells the block size")
	flags.BoolVarP(&c.dryRun, "dry-run", "n", false, "print how many bytes of data there would be, and read none")
	flags.BoolVar(&c.progress, "progress", false, "show how far it is: a bar on a terminal, lines elsewhere")
	addJSON(cmd, &c.asJSON, "one object, of a dry run")
	return cmd
}

func (c *eraCopy) run(cmd *cobra.Command, path string, g *globals) error {
	in, out := cmd.InOrStdin(), cmd.OutOrStdout()
	if !c.dryRun && isTerminal(out) {
		return usagef("standard output is a terminal: redirect the stream to a file or a pipe")
	}
	if c.list != "" && c.list != "-" {
		f, err := os.Open(c.list)
		if err != nil {
			return fmt.Errorf("era: list: %w", err)
		}
		defer f.Close()
		in = f
	}
	list, err := patiently(cmd.Context(), func() (blockList, error) { return readList(in) })
	if err != nil {
		return fmt.Errorf("era: list: %w", err)
	}
	src, err := block.Open(path, block.Options{Direct: true})
	if err != nil {
		return fmt.Errorf("era: %w", err)
	}
	defer src.Close()
	blockSize, err := c.blockSize(cmd.Context(), list, path, g)
	if err != nil {
		return err
	}
	set, err := list.extents(blockSize, src.Size())
	if err != nil {
		return err
	}
	if c.dryRun {
		return c.print(out, set, blockSize)
	}
	_, err = writeStreamTo(cmd.Context(), out, src, set, newProgress(cmd.ErrOrStderr(), !c.progress))
	return err
}

func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// patiently waits for work, or for the context to end. Then the work, which waits
// for the other end of a pipe, is left behind: the program is about to end.
func patiently[T any](ctx context.Context, work func() (T, error)) (T, error) {
	type outcome struct {
		value T
		err   error
	}
	done := make(chan outcome, 1)
	go func() {
		v, err := work()
		done <- outcome{v, err}
	}()
	select {
	case o := <-done:
		return o.value, o.err
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
}

// writeStreamTo writes the stream of a set.
func writeStreamTo(ctx context.Context, out io.Writer, src io.ReaderAt, set extent.Set, bar progress) (export.Report, error) {
	widen(out)
	bar.Begin("copy", set.Bytes())
	defer bar.End()
	return patiently(ctx, func() (export.Report, error) {
		return export.Write(ctx, out, src, set, func(n int64) {
			if ctx.Err() == nil {
				bar.Done(n)
			}
		})
	})
}

// widen makes a pipe hold more, so that both ends wait less for one another.
func widen(stream any) {
	if f, ok := stream.(*os.File); ok {
		_, _ = unix.FcntlInt(f.Fd(), unix.F_SETPIPE_SZ, pipeSize) // it is no pipe, or stays as it is
	}
}

// print tells what a stream would hold.
func (c *eraCopy) print(out io.Writer, set extent.Set, blockSize int64) error {
	if c.asJSON {
		return printJSON(out, struct {
			export.Report
			BlockSize int64 `json:"block_size"` // bytes
		}{export.Report{Records: int64(set.Len()), Bytes: set.Bytes()}, blockSize})
	}
	_, err := fmt.Fprintf(out, "%d bytes to copy\n", set.Bytes())
	return err
}
