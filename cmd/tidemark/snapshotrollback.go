package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"tidemark/block"
	"tidemark/boot"
	"tidemark/linux/sysfs"
	"tidemark/snapshot"
)

func newSnapshotRollback(g *globals) *cobra.Command {
	var dryRun bool
	cmd := command{
		use: "rollback NAME", short: "Put disks back to what they were at a snapshot",
		long: `Puts each disk of the snapshot NAME back to what it was when the snapshot was taken with --persistent, and ends the snapshot. Everything that was written since is lost. The disks must not be mounted; as soon as that is told they can be mounted again, while the rest is put back.

A rollback that was cut off, by a crash or a power cut at any moment, is taken up by the next command or boot. Until it is done the disk must not be used without it: by another system, or a boot without tidemark, it would be found half old and half new. Marks of the tracking are lost, and the next mirror compares.

Refused is a snapshot that is lost, and one whose own store was written to, through a writable image. While there are other snapshots of a disk they have to be destroyed first.`,
		example: `tidemark snapshot rollback before-upgrade --dry-run
umount /srv
tidemark snapshot rollback before-upgrade
mount /srv`,
		exits: append([]exitCode{exitRefused, exitBusy}, interruptible()...),
		args:  cobra.ExactArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			s, err := snapshot.Find(g.snapshotOptions(), args[0])
			if err != nil {
				return err
			}
			if !s.Rollback || dryRun {
				plan, err := s.PlanRollback()
				if err != nil {
					return err
				}
				for _, p := range plan {
					fmt.Fprintf(cmd.OutOrStdout(), "%s: %s to be put back\n", p.Origin, size(p.Bytes))
				}
				if dryRun {
					return nil
				}
				if err := s.RollBack(cmd.Context()); err != nil {
					return err
				}
			} else if over, err := takeUp(cmd, g, s); over || err != nil {
				return err
			}
			return waitRolledBack(cmd, s)
		},
	}.build()
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "tell how much would be put back, and do nothing")
	return cmd
}

// takeUp takes a rollback up that has begun, and reports whether it is over.
func takeUp(cmd *cobra.Command, g *globals, s *snapshot.Snapshot) (over bool, err error) {
	done, err := snapshot.Repair(cmd.Context(), g.snapshotOptions())
	for _, text := range done {
		fmt.Fprintln(cmd.OutOrStdout(), text)
	}
	if err != nil {
		return false, err
	}
	now, err := snapshot.Find(g.snapshotOptions(), s.Name)
	if errors.Is(err, snapshot.ErrNotFound) {
		return true, nil
	}
	if err == nil {
		*s = *now
	}
	return false, err
}

// waitRolledBack tells how a rollback goes on, until it is done.
func waitRolledBack(cmd *cobra.Command, s *snapshot.Snapshot) error {
	st, err := s.Status()
	if err != nil {
		return err
	}
	for _, v := range st.Volumes {
		if v.Lost == "" {
			fmt.Fprintf(cmd.OutOrStdout(), "/dev/mapper/%s is as it was, and can be mounted\n", v.Name)
		}
	}
	last := int64(-1)
	rest, err := s.WaitRolledBack(cmd.Context(), func(left int64) {
		if last < 0 || left == 0 || last-left >= last/10 && last != left {
			fmt.Fprintf(cmd.ErrOrStderr(), "%s left\n", size(left))
			last = left
		}
	})
	if err == nil && rest != "" {
		fmt.Fprintln(cmd.ErrOrStderr(), rest)
	}
	return err
}

// outlives refuses devices that the next boot would not open before they are mounted, and gives
// stores names that are the same at every boot.
func outlives(devices []snapshot.Device) error {
	return withSystem("/", func(sys *boot.System, table boot.Tab) error {
		for i, d := range devices {
			e, ok := table.LinearOver(d.Path)
			switch {
			case !ok:
				return fmt.Errorf("%s: %w: the boot opens no device of that name: \"tidemark adopt\" of its partition or disk has it do so; of a logical volume, also one in LUKS, LVM makes one that lasts, with --store lvm", d.Path, snapshot.ErrNotKept)
			case e.Stage != boot.StageSystem:
				return fmt.Errorf("%s: %w: it is opened in the initramfs, for root, where the record of the snapshot cannot be read: of a logical volume LVM makes one that lasts, with --store lvm; \"tidemark mirror\" and \"tidemark backup\" keep root as it is now", d.Path, snapshot.ErrNotKept)
			}
			var err error
			if devices[i].Store, err = lastingStore(d.Store); err != nil {
				return err
			}
		}
		program, err := sys.Program("")
		if err != nil {
			return err
		}
		plan, err := sys.Plan(table, program, false)
		if err == nil && (plan.Changes() || plan.Refused() != nil) {
			err = fmt.Errorf("%w: the files of the boot are of another version: run \"tidemark boot install\"", snapshot.ErrNotKept)
		}
		return err
	})
}

// lastingStore is a path of the store that is the same at every boot, where that is a device.
func lastingStore(store string) (string, error) {
	info, err := os.Stat(store)
	if store == "" || err != nil || info.Mode().Type() != os.ModeDevice {
		return store, nil // the package tells of files
	}
	name, err := boot.Resolve(store, false)
	if id, ierr := block.Identify(store); err == nil && (ierr != nil || sysfs.IsMapped(id.Disk)) {
		err = errors.Join(ierr, errors.New("it may be opened later than the disk: give a disk or partition"))
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w: %w", store, snapshot.ErrNotKept, err)
	}
	return boot.DevicePath(name), nil
}
