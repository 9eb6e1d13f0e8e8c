package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"tidemark/block"
	"tidemark/boot"
	"tidemark/snapshot"
	"tidemark/track/bpf"
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
		use: "open [NAME...]", short: "Open the devices of era.conf now, as the boot does",
		long: `Opens the devices NAME, or all of a stage, or all, of /etc/tidemark/era.conf, and waits for their devices if they are not there yet. A device that is open already, over the same devices, is no error: its discards are switched off if another program has switched them on. Metadata that is all zero is made anew when the table has create= for it.

Persistent snapshots of linear devices ("tidemark snapshot create --persistent") are brought up, or dropped, with them.

With --stage initramfs no era device, and nothing beside one, is opened while a hibernated system waits on a block device to be resumed, except with noresume on the kernel's command line. A hibernated system in a swap file is not seen.

With --stage initramfs the disk of the root filesystem is tracked from then on, where "tidemark boot install --track" was told so.

This is what the initramfs and the unit tidemark-era@NAME.service call. When it fails it says what to do.`,
		example: "tidemark boot open root --wait 10s",
		exits:   []exitCode{exitRefused, exitDamaged},
		args:    cobra.ArbitraryArgs,
		run: func(cmd *cobra.Command, args []string) error {
			b.out, b.talk = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return withSystem("/", func(_ *boot.System, table boot.Tab) error {
				return b.run(cmd.Context(), table, args)
			})
		},
	}.build()
	flags := cmd.Flags()
	flags.StringVar(&b.stage, "stage", "", "open those of this `stage`: initramfs or system")
	flags.DurationVar(&b.wait, "wait", 0, "wait this `long` for devices that are not there yet")
	flags.StringVar(&b.instead, "instead-of", "", "open nothing; print the device over this data `device`, or nothing")
	return cmd
}

func newBootNote(g *globals) *cobra.Command {
	b := &bootOpen{g: g, stage: string(boot.StageInitramfs)}
	return command{
		use: "note", short: "Note which era devices of root's are not open, as the boot does",
		long: `Looks whether the era devices that the initramfs opens, those of root and /usr, are open. When one is not, because the machine was booted past it with another initramfs, the data device is written to without the metadata. That is written down in the state folder, and marks and eras from before are not believed any more. The same holds for discards that an open era device took.

This is what tidemark-era-note.service calls when the system starts and when it ends.`,
		example: "tidemark boot note",
		exits:   []exitCode{exitDamaged},
		args:    cobra.NoArgs,
		run: func(cmd *cobra.Command, _ []string) error {
			b.out, b.talk = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return withSystem("/", func(_ *boot.System, table boot.Tab) error {
				return b.opener().Note(cmd.Context(), table.Stage(boot.StageInitramfs))
			})
		},
	}.build()
}

func (b *bootOpen) opener() boot.Opener {
	return boot.Opener{Options: b.g.eraOptions(), Wait: b.wait, Log: func(e boot.Entry, done string) {
		fmt.Fprintf(b.talk, "tidemark: %s %s\n", e.Path(), done)
	}}
}

func (b *bootOpen) run(ctx context.Context, table boot.Tab, names []string) error {
	if b.instead != "" {
		e, ok := table.Instead(b.instead)
		if !ok {
			return nil
		}
		_, err := fmt.Fprintln(b.out, e.Path())
		return err
	}
	if b.stage == string(boot.StageInitramfs) {
		b.track(ctx, table.TrackedRoot())
	}
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
	isEra := func(e boot.Entry) bool { return !e.Linear() }
	if b.stage == string(boot.StageInitramfs) && slices.ContainsFunc(entries, isEra) {
		if err := boot.Hibernated(); err != nil {
			return err
		}
	}
	err := b.opener().Open(ctx, entries)
	var failure *boot.Failure
	if errors.As(err, &failure) {
		return hinted{err, failure.Entry.Remedy()}
	}
	if err != nil {
		return err
	}
	return b.snapshots(ctx, entries)
}

// track begins to track the disk of the root filesystem, once it is there. A boot is not stopped
// when that fails: marks are lost then, and "track resume" says so.
func (b *bootOpen) track(ctx context.Context, disk string) {
	if disk == "" {
		return
	}
	if boot.Await(ctx, disk, time.Now().Add(b.wait)) != nil {
		return // nothing mounts root then, or "track resume" says that this did not come to it
	}
	source, err := block.Open(disk, block.Options{})
	if err == nil {
		err = errors.Join(bpf.Early(ctx, source, b.g.trackOptions()), source.Close())
	}
	if err != nil {
		fmt.Fprintf(b.talk, "tidemark: marks of %s from before the boot are lost: %v\n", disk, err)
	}
}

// snapshots brings up the persistent snapshots of linear devices, before these are mounted.
func (b *bootOpen) snapshots(ctx context.Context, entries []boot.Entry) error {
	var errs []error
	for _, e := range entries {
		if !e.Linear() {
			continue
		}
		done, err := snapshot.Assemble(ctx, b.g.snapshotOptions(), e.Name, b.wait)
		for _, text := range done {
			fmt.Fprintf(b.talk, "tidemark: %s\n", text)
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return hinted{err, `do not mount the disk before "tidemark snapshot repair" succeeds`}
	}
	return nil
}
