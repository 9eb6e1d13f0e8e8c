package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"tidemark/format/era"
	"tidemark/linux/dm"
	"tidemark/linux/dmera"
)

// eraOptions returns where the ownership of metadata snapshots is kept.
func (g *globals) eraOptions() dmera.Options {
	return dmera.Options{RunDir: g.runDir, StateDir: g.stateDir}
}

// withMapper calls do with a connection to device-mapper.
func withMapper(do func(*dm.Control) error) (err error) {
	ctl, err := dm.Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ctl.Close()) }()
	return do(ctl)
}

// withEra calls do with an era device that is up.
func (g *globals) withEra(name string, do func(*dmera.Device) error) error {
	return withMapper(func(ctl *dm.Control) (err error) {
		d, err := dmera.Open(ctl, name, g.eraOptions())
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, d.Close()) }()
		return do(d)
	})
}

// eraDevice is the command line of "era create" and "era open".
type eraDevice struct {
	data, meta string
	block      byteSize
	force      bool
}

func (v *eraDevice) flags(cmd *cobra.Command, blockUsage string) {
	flags := cmd.Flags()
	flags.StringVar(&v.data, "data", "", "`device` whose writes are to be remembered; a path that outlives a reboot is best, as /dev/disk/by-partuuid/…")
	flags.StringVar(&v.meta, "meta", "", "`device` for the metadata, of at least the size that \"era plan\" computes")
	addSize(cmd, &v.block, "block-size", blockUsage)
}

func (v *eraDevice) args(cmd *cobra.Command, args []string) error {
	if v.data == "" || v.meta == "" {
		return errors.New("--data DEVICE and --meta DEVICE are needed")
	}
	return cobra.ExactArgs(1)(cmd, args)
}

func newEraCreate(g *globals) *cobra.Command {
	v := &eraDevice{block: dmera.DefaultBlockSize}
	cmd := command{
		use: "create NAME --data DEVICE --meta DEVICE", short: "Make an era device",
		long: `Writes fresh metadata to the metadata device and makes /dev/mapper/NAME of all of the data device. What is on the data device stays, and is found on /dev/mapper/NAME: from now on mount and use only that, for writes that go past it are not seen.

The metadata gets an identity, so that an era is never taken for one of other metadata. Discards are switched off before anybody can use the device: dm-era marks only the first block of a discard, and the rest would be missing in every list of changes. When the data device has grown, "tidemark era resize" makes the era device larger, while it is in use.

The device is gone after a reboot; "tidemark era open" brings it up again.

Refused, before anything is written, are devices that are mounted or otherwise in use, that are the same or overlap, or that are read-only; a metadata device that is too small for any load on a device of this size, or that is not empty: its first 4 KiB are not all zero, or it has the signature of a filesystem or the like; a name that is taken.`,
		example: `tidemark era plan --size 500G
tidemark era create data --data /dev/vg/data --meta /dev/vg/data-era
mount /dev/mapper/data /srv`,
		exits: append(interruptible(), exitRefused),
		args:  v.args,
		run: func(cmd *cobra.Command, args []string) error {
			o := dmera.CreateOptions{
				Options: g.eraOptions(), Name: args[0], Data: v.data, Meta: v.meta,
				BlockSize: int64(v.block), Force: v.force,
			}
			return withMapper(func(ctl *dm.Control) error {
				d, err := dmera.Create(cmd.Context(), ctl, o)
				if err != nil {
					return err
				}
				return errors.Join(sayUp(cmd.OutOrStdout(), d), d.Close())
			})
		},
	}.build()
	v.flags(cmd, "`size` of the blocks in which writes are remembered, a multiple of 4KiB")
	cmd.Flags().BoolVar(&v.force, "force", false, "overwrite what is on the metadata device, if nobody uses it")
	return cmd
}

func newEraOpen(g *globals) *cobra.Command {
	v := &eraDevice{}
	cmd := command{
		use: "open NAME --data DEVICE --meta DEVICE", short: "Bring an era device up again, as after a reboot",
		long: `Makes /dev/mapper/NAME of a data device and the metadata that was made for it. The block size is read from the metadata; one that is given must be the same. Discards are switched off before anybody can use the device. When the device is up already, of the same data and metadata, only that is seen to, while it is in use, and discards that it took since it was made are told: marks from before them are lost.

Nothing is lost by a shutdown or a power cut: what was written before is remembered. What was written to the data device while the era device was not up is not, so bring it up before anything is mounted.

Metadata that another program made gets an identity at this moment; a device that is up is suspended for that moment. Where the data device has grown, the era device has its old size until "tidemark era resize".

Refused are devices that are mounted or otherwise in use, that are the same or overlap, or that are read-only, and data that is smaller than the metadata tells of.`,
		example: `tidemark era open data --data /dev/vg/data --meta /dev/vg/data-era
# in an initramfs
tidemark era open root --data /dev/disk/by-partuuid/5a1c-02 --meta /dev/disk/by-partuuid/5a1c-03`,
		exits: []exitCode{exitRefused, exitDamaged},
		args:  v.args,
		run: func(cmd *cobra.Command, args []string) error {
			o := dmera.ActivateOptions{
				Options: g.eraOptions(), Name: args[0], Data: v.data, Meta: v.meta, BlockSize: int64(v.block),
			}
			return withMapper(func(ctl *dm.Control) error {
				d, err := dmera.Activate(ctl, o)
				if err != nil {
					return err
				}
				if err := adoptEra(cmd.Context(), cmd.ErrOrStderr(), d); err != nil {
					return errors.Join(err, d.Close())
				}
				noteGrown(cmd.ErrOrStderr(), d)
				return errors.Join(sayUp(cmd.OutOrStdout(), d), d.Close())
			})
		},
	}.build()
	v.flags(cmd, "`size` of the blocks, when it shall be checked")
	return cmd
}

// adoptEra gives the metadata of a device that another program made an identity, and
// tells of discards that the device took.
func adoptEra(ctx context.Context, errs io.Writer, d *dmera.Device) error {
	id, err := d.Identity()
	if err == nil && id == (era.Identity{}) {
		id, err = d.Adopt(ctx)
		if err == nil {
			fmt.Fprintf(errs, "tidemark: note: %s: another program made it; its metadata got the identity %s\n", d.Path(), id)
		}
	}
	if err != nil {
		return err
	}
	return noteDiscards(ctx, errs, d)
}

// noteDiscards tells of discards that the device took since it was made.
func noteDiscards(ctx context.Context, errs io.Writer, d *dmera.Device) error {
	st, err := d.Status(ctx)
	if err == nil && st.Discards > 0 {
		fmt.Fprintf(errs, "tidemark: note: %s took %d discards, of which dm-era remembers only the first block: marks and eras from before count no more\n", d.Path(), st.Discards)
	}
	return err
}

func sayUp(out io.Writer, d *dmera.Device) error {
	_, err := fmt.Fprintf(out, "%s\t%s in blocks of %s\n", d.Path(), size(d.Size()), size(d.BlockSize()))
	return err
}

// noteGrown tells that the data device has become larger.
func noteGrown(errs io.Writer, d *dmera.Device) {
	if n, err := d.DataSize(); err == nil && n > d.Size() {
		fmt.Fprintf(errs, "tidemark: note: %s has grown by %s; \"tidemark era resize %s\" takes it in\n", d.DataPath(), size(n-d.Size()), d.Name())
	}
}

func newEraClose(g *globals) *cobra.Command {
	return command{
		use: "close NAME", short: "Take an era device down",
		long: `Removes /dev/mapper/NAME. The metadata is left as after a clean shutdown, and "tidemark era open" brings the device up again. What is written to the data device meanwhile is not remembered.

A device that is mounted or otherwise in use stays up.`,
		example: "umount /srv\ntidemark era close data",
		exits:   []exitCode{exitBusy},
		args:    cobra.ExactArgs(1),
		run: func(_ *cobra.Command, args []string) error {
			return withMapper(func(ctl *dm.Control) error {
				d, err := dmera.Open(ctl, args[0], g.eraOptions())
				if err != nil {
					return err
				}
				if err := d.Remove(); err != nil {
					return errors.Join(fmt.Errorf("%w%s", err, users(d.Path())), d.Close())
				}
				return nil
			})
		},
	}.build()
}

func newEraResize(g *globals) *cobra.Command {
	return command{
		use: "resize NAME", short: "Take in what the data device has grown by",
		long: `Makes the era device as large as its data device. It may be in use: it is suspended for a moment. Then grow the filesystem, as with resize2fs or xfs_growfs.

What is new counts as never written to; "tidemark mirror" copies it all the same, and who uses era_invalidate or "era changes" must.

Refused when the data device has become smaller, or when the metadata is too small for the new size: the kernel cannot grow metadata.`,
		example: `lvextend -L +100G vg/data
tidemark era resize data
resize2fs /dev/mapper/data`,
		exits: []exitCode{exitRefused, exitBusy},
		args:  cobra.ExactArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			return g.withEra(args[0], func(d *dmera.Device) error {
				if err := d.Resize(cmd.Context()); err != nil {
					return err
				}
				return sayUp(cmd.OutOrStdout(), d)
			})
		},
	}.build()
}

// eraNames lists the era devices that are up.
func eraNames(ctx context.Context, ctl *dm.Control) ([]string, error) {
	all, err := ctl.List()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range all {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		targets, _, err := ctl.Table(e.Name)
		if errors.Is(err, dm.ErrNotFound) {
			continue // removed in between
		}
		if err != nil {
			return nil, err
		}
		if len(targets) == 1 && targets[0].Type == "era" {
			names = append(names, e.Name)
		}
	}
	return names, nil
}
