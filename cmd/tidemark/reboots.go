package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"tidemark/block"
	"tidemark/boot"
	"tidemark/track/bpf"
	"tidemark/transfer"
	"tidemark/transfer/tracking"
)

// savedPlace is where the tracking of a disk is saved, by the name that the unit gives it.
func (g *globals) savedPlace(disk string) (at bpf.Place, err error) {
	err = withSystem("/", func(_ *boot.System, table boot.Tab) error {
		at = table.PlaceOf(g.stateDir, disk)
		return nil
	})
	return at, err
}

func newTrackSave(g *globals) *cobra.Command {
	var wait time.Duration
	cmd := command{
		use: "save DEVICE", short: "Save what is tracked, at the end of a shutdown",
		long: `Writes down what is known of the changes of the disk DEVICE, for "tidemark track resume" at the next boot. Nobody may use the disk; it is read-only from then on, until the machine has booted again. "tidemark boot install --track" makes a unit that does this when all of the disk is unmounted. The disk of the root filesystem is saved when all on it is read-only, by what systemd calls at the very end of a shutdown.

When it cannot vouch for the changes, it writes down why, and ends with an error: the next boot says so.`,
		example: "tidemark track save /dev/disk/by-id/virtio-data",
		exits:   []exitCode{exitMarkLost},
		args:    cobra.ExactArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			source, err := block.Open(args[0], block.Options{})
			if err != nil {
				return fmt.Errorf("track: %w", err)
			}
			defer source.Close()
			at, err := g.savedPlace(args[0])
			if err == nil && !at.Root {
				err = bpf.AwaitUnused(cmd.Context(), source, wait)
			}
			if err == nil {
				err = bpf.Save(cmd.Context(), source, g.trackOptions(), at)
			}
			if errors.Is(err, bpf.ErrNotTracked) {
				fmt.Fprintf(cmd.ErrOrStderr(), "tidemark: note: %s is not tracked, there is nothing to save\n", args[0])
				return nil
			}
			return err
		},
	}.build()
	cmd.Flags().DurationVar(&wait, "wait", 0, "how `long` to wait until nobody uses the disk")
	return cmd
}

func newTrackResume(g *globals) *cobra.Command {
	var asJSON bool
	cmd := command{
		use: "resume DEVICE", short: "Go on with what was saved, at the beginning of a boot",
		long: `Begins to track the disk DEVICE before anybody uses it, and goes on with what "tidemark track save" wrote down when the machine was shut down. Marks from before are good when it is the same disk, of the same size, when nobody has mounted, checked or repaired a filesystem on it meanwhile, and when nothing was taken up from that record before. Otherwise they are lost, and it says why; that is no error. "tidemark boot install --track" makes a unit that does this before anything on the disk is mounted. The disk of the root filesystem must have been tracked since the initramfs ("tidemark boot open --stage initramfs"); the file that it is saved to is made where there is none.

What keeps no trace of a mount (FAT, swap, LUKS, LVM, space outside of filesystems) counts as changed.`,
		example: "tidemark track resume /dev/disk/by-id/virtio-data",
		args:    cobra.ExactArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			source, err := block.Open(args[0], block.Options{})
			if err != nil {
				return fmt.Errorf("track: %w", err)
			}
			defer source.Close()
			at, err := g.savedPlace(args[0])
			if err != nil {
				return err
			}
			o := g.trackOptions()
			o.Drain = func(ctx context.Context) error { return tracking.Drain(ctx, args[0], transfer.DefaultMaxFreeze) }
			r, err := bpf.Resume(cmd.Context(), source, o, at)
			if err == nil && at.Root {
				err = at.Prepare()
			}
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), r)
			}
			if r.Lost != "" {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: marks from before the boot are lost: %s\n", args[0], r.Lost)
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %d marks from before the boot are good; %s count as changed\n", args[0], r.Marks, size(r.Silent))
			return err
		},
	}.build()
	addJSON(cmd, &asJSON, "one object")
	return cmd
}

// track is "boot install --track".
func (b *bootInstall) track(ctx context.Context, sys *boot.System, table boot.Tab, program string) error {
	var disks []string
	for _, device := range b.tracked {
		disk, err := boot.Disk(device, !sys.Running())
		stage := boot.Stage(b.stage.value) // of the image of another machine
		if err == nil && sys.Running() {
			stage, err = boot.CheckTracked(disk)
		}
		if err != nil {
			return err
		}
		if table, err = table.WithTracked(disk, stage); err != nil {
			return err
		}
		disks = append(disks, disk)
	}
	if err := b.change(ctx, sys, table, program); err != nil || b.dryRun || !sys.Running() {
		return err
	}
	if err := boot.MakePlace(); err != nil {
		return err
	}
	for _, disk := range disks {
		// It saves at a shutdown only what it has begun with.
		unit := table.TrackUnit(disk)
		if out, err := exec.CommandContext(ctx, "systemctl", "start", unit).CombinedOutput(); err != nil {
			return hinted{fmt.Errorf("boot: start %s: %w: %s", unit, err, out), "the files are in place; from the next boot on the marks outlive a clean reboot"}
		}
		if disk == table.TrackedRoot() && !b.update {
			fmt.Fprintf(b.out, "the marks of %s outlive a clean reboot once the initramfs images are made anew; a power cut loses them\n", disk)
			continue
		}
		fmt.Fprintf(b.out, "the marks of %s outlive a clean reboot from now on; a power cut loses them\n", disk)
	}
	return nil
}

// untrack is "boot uninstall --track".
func (b *bootSystem) untrack(ctx context.Context, g *globals, sys *boot.System, table boot.Tab, device string) error {
	before := table
	disk, err := boot.Disk(device, true)
	if err != nil {
		return err
	}
	if table, err = table.WithoutTracked(disk); err != nil {
		return err
	}
	program, err := sys.Program("")
	if err != nil && !table.Empty() {
		return err
	}
	root := disk == before.TrackedRoot()
	if err := b.change(ctx, sys, table, program); err != nil || b.dryRun || !sys.Running() || !root {
		return err
	}
	return before.PlaceOf(g.stateDir, disk).Remove()
}

// rebootHint says after the first copy of a source, and so once, what a reboot will do to the next
// run, where that can be changed; else it is empty.
func rebootHint(rep transfer.Report) string {
	if rep.Mode != "full" || rep.Tracker != bpf.Kind || rep.Outcome != "ok" {
		return ""
	}
	disk, err := boot.Disk(rep.Source, false)
	if err != nil {
		return ""
	}
	if _, err := boot.CheckTracked(disk); err != nil {
		return ""
	}
	sys, err := boot.OpenSystem("/")
	if err != nil {
		return ""
	}
	defer sys.Close()
	table, err := sys.Tab()
	if err != nil || slices.Contains(table.Tracked(), disk) {
		return ""
	}
	return fmt.Sprintf("%s: after a reboot the next run reads all of it; \"tidemark boot install --track %s\" changes that for clean ones, a dm-era device for power cuts too", rep.Source, rep.Source)
}

// lasting tells what the next reboot does to marks.
func (g *globals) lasting() (l *boot.Lasting, err error) {
	err = withSystem("/", func(sys *boot.System, _ boot.Tab) error {
		l, err = sys.Lasting(g.stateDir)
		return err
	})
	return l, err
}
