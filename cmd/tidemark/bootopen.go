package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"tidemark/boot"
	"tidemark/boot/early"
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

This is what the initramfs and the unit tidemark-era@NAME.service call. When it fails it says what to do. An initramfs has it from tidemark-boot, a small program beside tidemark.`,
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
				return b.opener().Devices().Note(cmd.Context(), table.Stage(boot.StageInitramfs))
			})
		},
	}.build()
}

func (b *bootOpen) opener() early.Opener {
	return early.Opener{Era: b.g.eraOptions(), Track: b.g.trackOptions(), Snapshots: b.g.snapshotOptions(), Wait: b.wait, Talk: b.talk}
}

func (b *bootOpen) run(ctx context.Context, table boot.Tab, names []string) (err error) {
	if b.instead != "" {
		if path := early.Instead(table, b.instead); path != "" {
			_, err = fmt.Fprintln(b.out, path)
		}
		return err
	}
	err = b.opener().Open(ctx, table, boot.Stage(b.stage), names)
	if remedy := early.Remedy(err); remedy != "" {
		return hinted{err, remedy}
	}
	return err
}
