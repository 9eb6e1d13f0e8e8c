package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"tidemark/block"
	"tidemark/format/datto"
	"tidemark/transfer/cowfiles"
)

func newDatto(g *globals) *cobra.Command {
	return command{
		use: "datto", short: "Look into COW files of dattobd, and merge them into images",
		long: `The drivers dattobd and elastio-snap keep a COW file on the disk that they trace. In the snapshot mode it has what the blocks held that changed since the snapshot; in the incremental mode it has a list of the blocks that changed, from one snapshot to the next. These commands read such files, of every release since 2015, also without the driver.

A file says something only when the driver has closed it: "transition-to-snapshot" does, and so does unmounting its filesystem. One without the flag CLEAN is refused.`,
		example: `tidemark datto info /mnt/.datto
tidemark datto merge /dev/datto0 /mnt/.datto1 /backup/vdb1.img`,
	}.build(newDattoInfo(), newDattoList(), newDattoCheck(), newDattoMerge(g), newDattoExtract())
}

func newDattoInfo() *cobra.Command {
	var asJSON bool
	cmd := command{
		use: "info FILE", short: "Print the header of a COW file",
		long:    "Prints what the header of a COW file says: the mode, whether the driver has closed it, its place in the chain of snapshots, and how many blocks changed.",
		example: "tidemark datto info /mnt/.datto",
		exits:   []exitCode{exitDamaged},
		args:    cobra.ExactArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			f, err := cowfiles.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			h := f.Header()
			if asJSON {
				return printJSON(cmd.OutOrStdout(), h)
			}
			mode, closed := "snapshot", "closed"
			if h.IndexOnly {
				mode = "incremental"
			}
			if !h.Clean {
				closed = "not closed by its driver"
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s, %s, uuid %s, sequence %d, version %d, %d changed blocks\n",
				args[0], mode, closed, h.UUID, h.Sequence, h.Version, h.Changed)
			return err
		},
	}.build()
	addJSON(cmd, &asJSON, "one object")
	return cmd
}

// cowDevice says of which device a COW file is.
type cowDevice struct {
	path string
	size byteSize
}

func (d *cowDevice) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&d.path, "device", "", "the `device` or image that the file is of, for its size")
	addSize(cmd, &d.size, "device-size", "the size of that device")
}

// bytes returns the size of the device: as was said, or as the file tells, in whole sections.
func (d *cowDevice) bytes(f *cowfiles.File) (int64, error) {
	switch {
	case d.path != "":
		dev, err := block.Open(d.path, block.Options{})
		if err != nil {
			return 0, err
		}
		return dev.Size(), dev.Close()
	case d.size > 0:
		return int64(d.size), nil
	case f.Device() > 0:
		return f.Device(), nil
	}
	return 0, usagef("this file does not tell the size of its device: give it with --device or --device-size")
}

func newDattoCheck() *cobra.Command {
	var device cowDevice
	var asJSON bool
	cmd := command{
		use: "check FILE", short: "Check a COW file",
		long: `Holds a COW file against its format: the driver has closed it, its index fits into it, names no block behind the end of the device, and has as many blocks as the header says; in the snapshot mode, each block of data belongs to one entry. The first fault is told.

The size of the device is told by --device or --device-size. Without them a file of the incremental mode is checked for the largest device that its index has room for.`,
		example: "tidemark datto check --device /dev/vdb1 /mnt/.datto",
		exits:   []exitCode{exitDamaged, exitRefused},
		args:    cobra.ExactArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			return onCOWFile(args[0], device, func(f *cowfiles.File, size int64) error {
				sum, err := f.Check(size)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(cmd.OutOrStdout(), sum)
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %d changed blocks, %d of them kept, no faults\n", args[0], sum.Changed, sum.Saved)
				return err
			})
		},
	}.build()
	device.add(cmd)
	addJSON(cmd, &asJSON, "one object")
	return cmd
}

func newDattoList() *cobra.Command {
	var device cowDevice
	var asJSON bool
	cmd := command{
		use: "list FILE", short: "List what changed, as a COW file has it",
		long:    `Prints the parts of the device that changed, one a line: offset and length in bytes. A short last block of which the driver keeps no account is among them. The size of the device is told as for "tidemark datto check".`,
		example: "tidemark datto list --device /dev/vdb1 /mnt/.datto",
		exits:   []exitCode{exitDamaged, exitRefused},
		args:    cobra.ExactArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			return onCOWFile(args[0], device, func(f *cowfiles.File, size int64) error {
				if _, err := f.Check(size); err != nil {
					return err
				}
				set, err := f.Changed(size)
				if err != nil {
					return err
				}
				return printSet(cmd.OutOrStdout(), set, asJSON)
			})
		},
	}.build()
	device.add(cmd)
	addJSON(cmd, &asJSON, "one object")
	return cmd
}

func onCOWFile(path string, device cowDevice, do func(f *cowfiles.File, size int64) error) error {
	f, err := cowfiles.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := device.bytes(f)
	if err == nil {
		err = do(f, size)
	}
	return err
}

func newDattoMerge(g *globals) *cobra.Command {
	o := cowfiles.Options{}
	var asJSON bool
	cmd := command{
		use: "merge SNAPDEV FILE IMAGE", short: "Bring an image of one snapshot to the next",
		long: `Copies from the snapshot SNAPDEV (/dev/dattoN, or an image of "tidemark snapshot to-snapshot") to IMAGE the blocks that FILE names: the COW file that was closed when that snapshot was taken. IMAGE, a file or a device, is an image of the snapshot before, and becomes one of SNAPDEV. It goes through a journal beside IMAGE, so that IMAGE is old or new, whatever crashes; a run that was cut off is run again.

Refused, before anything is written: a FILE that the driver has not closed, or that does not immediately go before the snapshot (by the UUID and sequence that the driver tells), an IMAGE of another size, one that is in use or a mirror, and one of which most of what did not change is not the same as in SNAPDEV.

Where the driver is not loaded, --info names a file with its answer, as it was in /proc/datto-info.

The driver does not see discards, nor what is written to its own COW file; what it missed is missing in IMAGE, too.`,
		example: `dbdctl transition-to-snapshot /.datto2 0
tidemark datto merge /dev/datto0 /mnt/.datto1 /backup/vdb1.img
# without the driver
tidemark datto merge --info datto-info.json snapshot.img datto1 vdb1.img`,
		exits: append(interruptible(), exitRefused, exitBusy, exitDamaged),
		args:  cobra.ExactArgs(3),
		run: func(cmd *cobra.Command, args []string) error {
			bar := newProgress(cmd.ErrOrStderr(), asJSON)
			o.StateDir, o.Progress, o.Note = g.stateDir, phases(bar), bar.Note
			o.Known = g.knownSnapshot
			rep, err := cowfiles.Merge(cmd.Context(), args[0], args[1], args[2], o)
			bar.End()
			switch {
			case err != nil:
				return err
			case asJSON:
				return printJSON(cmd.OutOrStdout(), rep)
			case o.DryRun:
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: would copy %d blocks, %s; %s of it are there already\n", args[2], rep.Blocks, size(rep.Bytes), size(rep.Equal))
			default:
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: copied %d blocks, %s\n", args[2], rep.Blocks, size(rep.Bytes))
			}
			return err
		},
	}.build()
	flags := cmd.Flags()
	flags.StringVar(&o.Info, "info", "", "a `file` with the driver's answer, in the place of /proc/datto-info")
	flags.IntVar(&o.Minor, "minor", -1, "the driver's `number` of the snapshot, where neither the name of SNAPDEV nor an answer with one device alone tells it")
	flags.BoolVarP(&o.DryRun, "dry-run", "n", false, "judge and compare, and write nothing")
	addJSON(cmd, &asJSON, "one object")
	return cmd
}

func newDattoExtract() *cobra.Command {
	var asJSON bool
	cmd := command{
		use: "extract FILE DEVICE IMAGE", short: "Make an image of a snapshot without the driver",
		long:    `Writes a new sparse file IMAGE with what the snapshot of DEVICE read as: what DEVICE holds, with what FILE, of the snapshot mode, has kept in its place. DEVICE must be as it was when the driver closed FILE: not mounted read-write since. Both are only read.`,
		example: "tidemark datto extract datto1 vdb1.img snapshot.img",
		exits:   append(interruptible(), exitRefused, exitDamaged),
		args:    cobra.ExactArgs(3),
		run: func(cmd *cobra.Command, args []string) error {
			bar := newProgress(cmd.ErrOrStderr(), asJSON)
			rep, err := cowfiles.Extract(cmd.Context(), args[0], args[1], args[2], cowfiles.Options{Progress: phases(bar)})
			bar.End()
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), rep)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s of it from %s\n", args[2], size(rep.Bytes), args[0])
			return err
		},
	}.build()
	addJSON(cmd, &asJSON, "one object")
	return cmd
}

// asUpdateImg answers to update-img, and to img-merge, as it was called before.
func asUpdateImg(name string) func(ctx context.Context, args []string, std stdio) error {
	usage := name + ` (tidemark) copies what changed from one dattobd snapshot to the next into an image.

Usage:
` + name + ` [--info <file>] [--minor <number>] <snapshot device> <cow file> <image file>

The image is of the snapshot before. Without the driver --info names a file with its answer,
as it was in /proc/datto-info.
`
	return func(ctx context.Context, args []string, std stdio) error {
		o, paths, err := parseUpdateImg(name, usage, args, std)
		if err != nil || paths == nil {
			return err
		}
		g := fromEnvironment()
		o.StateDir, o.Known = g.stateDir, g.knownSnapshot
		o.Note = func(text string) { fmt.Fprintln(std.errs, text) }
		fmt.Fprintln(std.out, "copying blocks")
		rep, err := cowfiles.Merge(ctx, paths[0], paths[1], paths[2], o)
		if err != nil {
			if hint := hintOf(err); hint != "" {
				err = fmt.Errorf("%w\n%s", err, hint)
			}
			return fmt.Errorf("%s: %w", name, err)
		}
		_, err = fmt.Fprintf(std.out, "snapshot is %d blocks large\ncopying complete: %d blocks changed, 0 errors\n",
			(rep.Device+datto.BlockSize-1)/datto.BlockSize, rep.Blocks)
		return err
	}
}

// parseUpdateImg returns no paths when all that was asked for was printed.
func parseUpdateImg(name, usage string, args []string, std stdio) (o cowfiles.Options, paths []string, err error) {
	o.Minor = -1
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		option, value, given := strings.Cut(args[0], "=")
		switch option {
		case "-h", "--help":
			_, err := fmt.Fprint(std.out, usage)
			return o, nil, err
		case "-V", "--version":
			_, err := fmt.Fprintf(std.out, "%s (tidemark %s)\n", name, versionText())
			return o, nil, err
		case "--info", "--minor":
			if !given && len(args) > 1 {
				value, args = args[1], args[1:]
			}
		default:
			return o, nil, fmt.Errorf("%s: unknown option %s; a file of that name is ./%s\n%s", name, option, option, usage)
		}
		if option == "--info" {
			o.Info = value
		} else if o.Minor, err = strconv.Atoi(value); err != nil || o.Minor < 0 {
			return o, nil, fmt.Errorf("%s: %q is no minor\n%s", name, value, usage)
		}
		args = args[1:]
	}
	if len(args) != 3 {
		fmt.Fprint(std.errs, usage)
		return o, nil, errQuiet
	}
	return o, args, nil
}
