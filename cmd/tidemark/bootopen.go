package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"tidemark/block"
	"tidemark/boot"
	"tidemark/format/era"
	"tidemark/linux/dm"
	"tidemark/linux/dmera"
)

// bootOpen is the command line of "boot open".
type bootOpen struct {
	g         *globals
	stage     string
	instead   string
	wait      time.Duration
	out, talk io.Writer
}

func newBootOpen(g *globals) *cobra.Command {
	b := &bootOpen{g: g}
	cmd := command{
		use: "open [NAME...]", short: "Open the era devices of era.conf now, as the boot does",
		long: `Opens the era devices NAME, or all of a stage, or all, of /etc/tidemark/era.conf, and waits for their devices if they are not there yet. One that is open already, over the same devices, is no error: discards are switched off, if another program has let them through. Metadata that is all zero is made anew when the table has create= for it.

With --stage initramfs nothing is opened while a hibernated system waits on a swap partition to be resumed, except with noresume on the kernel's command line; one in a swap file is not seen.

This is what the initramfs and the unit tidemark-era@NAME.service call. When it fails it says what to do.`,
		example: "tidemark boot open root --wait 10s",
		exits:   []exitCode{exitRefused, exitDamaged},
		args:    cobra.ArbitraryArgs,
		run: func(cmd *cobra.Command, args []string) error {
			b.out, b.talk = cmd.OutOrStdout(), cmd.ErrOrStderr()
			table, err := b.table()
			if err != nil || b.instead != "" {
				return err
			}
			return b.run(cmd.Context(), table, args)
		},
	}.build()
	flags := cmd.Flags()
	flags.StringVar(&b.stage, "stage", "", "open those of this `stage`: initramfs or system")
	flags.DurationVar(&b.wait, "wait", 0, "wait this `long` for devices that are not there yet")
	flags.StringVar(&b.instead, "instead-of", "", "open nothing; print the era device over this data `device`, or nothing")
	return cmd
}

// table reads the table, and answers --instead-of.
func (b *bootOpen) table() (table boot.Tab, err error) {
	sys, err := boot.OpenSystem("/")
	if err != nil {
		return table, err
	}
	defer func() { err = errors.Join(err, sys.Close()) }()
	if table, err = sys.Tab(); err != nil || b.instead == "" {
		return table, err
	}
	if e, ok := table.Instead(b.instead); ok {
		_, err = fmt.Fprintln(b.out, e.Path())
	}
	return table, err
}

func newBootNote(g *globals) *cobra.Command {
	b := &bootOpen{g: g, stage: string(boot.StageInitramfs)}
	return command{
		use: "note", short: "Note which era devices of root's are not open, as the boot does",
		long: `Looks whether the era devices that the initramfs opens, those of root and /usr, are open. When one is not, because the machine was booted past it with another initramfs, the data device is being written to and the metadata does not know: that is written down in the state folder, and marks and eras from before are not believed any more. So are discards that an open one took.

This is what tidemark-era-note.service calls when the system starts and when it ends.`,
		example: "tidemark boot note",
		exits:   []exitCode{exitDamaged},
		args:    cobra.NoArgs,
		run: func(cmd *cobra.Command, _ []string) error {
			b.out, b.talk = cmd.OutOrStdout(), cmd.ErrOrStderr()
			table, err := b.table()
			if err != nil {
				return err
			}
			return b.opener().Note(cmd.Context(), table.Stage(boot.StageInitramfs))
		},
	}.build()
}

func (b *bootOpen) opener() boot.Opener {
	return boot.Opener{Kernel: b.g.eraKernel(b.talk), Wait: b.wait, Log: func(e boot.Entry, done string) {
		fmt.Fprintf(b.talk, "tidemark: %s %s\n", e.Path(), done)
	}}
}

func (b *bootOpen) run(ctx context.Context, table boot.Tab, names []string) error {
	entries := table.Entries()
	if b.stage != "" {
		entries = table.Stage(boot.Stage(b.stage))
	}
	if len(names) > 0 {
		entries = nil
		for _, name := range names {
			e, err := table.Find(name)
			if err != nil {
				return err
			}
			entries = append(entries, e)
		}
	}
	if b.stage == string(boot.StageInitramfs) && len(entries) > 0 {
		if err := boot.Hibernated(); err != nil {
			return err
		}
	}
	err := b.opener().Open(ctx, entries)
	var failure *boot.Failure
	if errors.As(err, &failure) {
		return hinted{err, failure.Entry.Remedy()}
	}
	return err
}

// eraKernel opens era devices with all that dmera refuses.
type eraKernel struct {
	options dmera.Options
	talk    io.Writer
}

func (g *globals) eraKernel(talk io.Writer) eraKernel {
	return eraKernel{dmera.Options{RunDir: g.runDir, StateDir: g.stateDir}, talk}
}

// Active implements boot.Kernel.
func (k eraKernel) Active(name string) (data, meta string, err error) {
	err = k.with(func(ctl *dm.Control) error {
		if _, err := ctl.Info(name); errors.Is(err, dm.ErrNotFound) {
			return fmt.Errorf("%w: %w", boot.ErrNotOpen, err)
		}
		d, err := dmera.Open(ctl, name, k.options)
		if err != nil {
			return err
		}
		data, meta = d.DataPath(), d.MetaPath()
		return d.Close()
	})
	return data, meta, err
}

// Open implements boot.Kernel.
func (k eraKernel) Open(ctx context.Context, name, data, meta string) error {
	return k.with(func(ctl *dm.Control) error {
		d, err := dmera.Activate(ctl, dmera.ActivateOptions{Options: k.options, Name: name, Data: data, Meta: meta})
		if err != nil {
			return err
		}
		return errors.Join(noteDiscards(ctx, k.talk, d), d.Close())
	})
}

// Create implements boot.Kernel.
func (k eraKernel) Create(ctx context.Context, name, data, meta string, blockSize int64) error {
	return k.with(func(ctl *dm.Control) error {
		d, err := dmera.Create(ctx, ctl, dmera.CreateOptions{Options: k.options, Name: name, Data: data, Meta: meta, BlockSize: blockSize})
		if err != nil {
			return err
		}
		return d.Close()
	})
}

// Note implements boot.Kernel.
func (k eraKernel) Note(ctx context.Context, name string) error {
	return k.with(func(ctl *dm.Control) error {
		d, err := dmera.Open(ctl, name, k.options)
		if err != nil {
			return err
		}
		_, err = d.NoteGaps(ctx)
		return errors.Join(err, d.Close())
	})
}

// NotePast implements boot.Kernel.
func (k eraKernel) NotePast(name, meta string) error { return dmera.NotePast(name, meta, k.options) }

// Blank implements boot.Kernel.
func (eraKernel) Blank(meta string) (bool, error) { return blankMetadata(meta) }

// with runs do with the control device.
func (eraKernel) with(do func(ctl *dm.Control) error) error {
	ctl, err := dm.Open()
	if err != nil {
		return err
	}
	return errors.Join(do(ctl), ctl.Close())
}

// blankMetadata reports whether the first block is all zero, which is what makes the
// kernel begin anew.
func blankMetadata(path string) (bool, error) {
	dev, err := block.Open(path, block.Options{Direct: true})
	if err != nil {
		return false, fmt.Errorf("boot: metadata: %w", err)
	}
	defer dev.Close()
	first := block.AlignedBuffer(era.BlockSize)
	if _, err := dev.ReadAt(first, 0); err != nil {
		return false, fmt.Errorf("boot: metadata: %w", err)
	}
	return block.IsZero(first), nil
}

// postpone leaves the names of the data device alone until the next boot, unless the
// era device is in use already. What is written past a device of root's until then is
// in no era.
func (g *globals) postpone(e boot.Entry) error {
	if _, _, err := g.eraKernel(io.Discard).Active(e.Name); err == nil {
		return nil
	}
	if e.Stage == boot.StageInitramfs {
		if err := g.eraKernel(io.Discard).NotePast(e.Name, boot.DevicePath(e.Meta)); err != nil {
			return err
		}
	}
	return boot.Postpone(e)
}
