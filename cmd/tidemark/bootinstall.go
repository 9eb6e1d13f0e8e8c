package main

import (
	"cmp"
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"tidemark/boot"
)

// bootInstall is the command line of "boot install".
type bootInstall struct {
	bootSystem
	g            *globals
	name, linear string // one of them
	data, meta   string
	stage        choice
	create       byteSize
	tracked      []string
}

func newBootInstall(g *globals) *cobra.Command {
	b := &bootInstall{g: g}
	cmd := command{
		use: "install [--era NAME --data DEV --meta DEV | --linear NAME --data DEV | --track DEVICE...]", short: "Open an era device at every boot",
		long: `Adds the era device NAME to /etc/tidemark/era.conf, or replaces its line, and writes what opens it at every boot: hook and scripts for initramfs-tools, a module for dracut (for those of the two that are installed), a systemd unit and a udev rule. Without --era the files are made anew from era.conf as it is, after a change by hand. Several devices are installed one after the other.

With --linear it is a linear device: DATA under another name, of which live snapshots can be taken. "tidemark adopt" does this on a running system, with more checks; here it is for the image of another one. What is said below of metadata is not for it.

With --track nothing is opened: the marks of the disk that DEVICE is, or is a part of, outlive a clean reboot. A systemd unit saves what is known of its changes to /var/lib/tidemark/tracking (to /etc/tidemark/tracking, where /var/lib is a filesystem of its own) when all of it is unmounted, and goes on with it at the next boot before anything on it is mounted. A power cut or a crash, a mount, a check or a repair by another system, another disk in its place, and a resize lose the marks, and the next run reads everything. What keeps no trace of a mount counts as changed after each reboot: FAT, swap, LUKS, LVM, and what is outside of a filesystem. Of a disk with LUKS or LVM give the volume that is mounted. A dm-era device is the answer against power cuts.

The disk of the root filesystem, which is never unmounted, is tracked from the initramfs on, and saved when systemd has made root read-only, past its filesystem, into a file that is made for it: root must be ext4 or XFS on a partition of the disk, and the initramfs images are to be made anew as for an era device. With --root, say --stage initramfs for that disk.

The devices may be given by any name; stored is their PARTUUID, else a link in /dev/disk/by-id, else a name in /dev/mapper. A device that has none is refused: /dev/sdb may be another disk at the next boot.

An era device that root or /usr is on is opened in the initramfs (--stage initramfs), any other by the unit tidemark-era@NAME.service before local filesystems are mounted (--stage system), which closes it at shutdown after they are unmounted. Without --stage, what is mounted from DEV now decides; with --root it is the initramfs.

The metadata must be that of this data device ("tidemark era create"), or, with --create SIZE, all zero: then the next boot makes it anew with blocks of SIZE. Metadata tells only of writes through the era device. For --stage initramfs the eras from before the next boot therefore count no more. For --stage system, when the data device was written to past the era device since the metadata was made, fill the first block of the metadata with zeros and use --create.

For --stage initramfs a system is refused that was told to resume from hibernation: resume= is on the kernel's command line, or the initramfs has named a device in /sys/power/resume. A resumed kernel goes on with the metadata that it had in memory, and overwrites what the initramfs has written to it. Give hibernation up, with noresume on the kernel's command line (in /etc/default/grub, then update-grub), and boot once before you install. Hibernation to a swap file, or to a device that appears later than the era device, is not seen, nor are the settings of a system below --root.

The initramfs gets tidemark-boot, a small program that is installed beside tidemark; one that is missing, or of another build, is refused.

Then make the initramfs images anew: "update-initramfs -u -k all" with initramfs-tools, "dracut --force --regenerate-all" with dracut; --update does it. And let the system mount the era device:

  boot loader: root=/dev/mapper/NAME. With GRUB set GRUB_DISABLE_LINUX_UUID=true in /etc/default/grub and run update-grub after the first boot from the era device. root=UUID=... works as well, for the data device loses that name. root=PARTUUID=... of the data device works with initramfs-tools only; with a linear device always.
  /etc/fstab: /dev/mapper/NAME in place of the data device; UUID= and LABEL= may stay.

A boot in which the device cannot be opened ends in a shell, with what is wrong and what to do. With dracut, give rd.shell=1 to the kernel for that.`,
		example: `tidemark boot install --era root --data /dev/sda2 --meta /dev/sda3 --create 2M --update
tidemark boot install --era srv --data /dev/vg/srv --meta /dev/vg/srv-era --stage system
# the marks of a data disk outlive clean reboots
tidemark boot install --track /dev/vdb
# for the builder of an image
tidemark boot install --root /mnt/image --era root --data PARTUUID=6ab7a01e-02 --meta PARTUUID=6ab7a01e-03 --create 2M
tidemark boot install --root /mnt/image --linear root --data PARTUUID=6ab7a01e-02`,
		exits: []exitCode{exitRefused, exitDamaged},
		args:  cobra.NoArgs,
		run: func(cmd *cobra.Command, args []string) error {
			era := b.name != "" && b.linear == "" && b.data != "" && b.meta != ""
			linear := b.linear != "" && b.name+b.meta == "" && b.data != "" && b.create == 0
			given := era || linear
			if !given && b.name+b.linear+b.data+b.meta != "" {
				return usagef("--era, --data and --meta are needed together, or --linear and --data")
			}
			if given && len(b.tracked) > 0 {
				return usagef("--track stands alone")
			}
			b.out = cmd.OutOrStdout()
			return withSystem(b.root, func(sys *boot.System, table boot.Tab) error {
				return b.run(cmd.Context(), sys, table, given)
			})
		},
	}.build()
	b.bootSystem.flags(cmd)
	flags := cmd.Flags()
	flags.StringVar(&b.name, "era", "", "`name` of the era device; it will be /dev/mapper/NAME")
	flags.StringVar(&b.linear, "linear", "", "`name` of a linear device, in place of --era; it needs no --meta")
	flags.StringVar(&b.data, "data", "", "`device` that holds the data, or PARTUUID=...")
	flags.StringVar(&b.meta, "meta", "", "`device` that holds the metadata, or PARTUUID=...")
	addSize(cmd, &b.create, "create", "when the metadata is all zero, make it anew at boot with blocks of this `size`")
	flags.StringArrayVar(&b.tracked, "track", nil, "`device` whose tracking goes on after a clean reboot; it may be given several times")
	flags.StringVar(&b.program, "program", "", "`path` of tidemark in the system; this program, or the one that is found there")
	addChoice(cmd, &b.stage, "stage", "when the era device is opened: by systemd, or before root is mounted", "auto", "initramfs", "system")
	return cmd
}

func (b *bootInstall) run(ctx context.Context, sys *boot.System, table boot.Tab, given bool) error {
	program, err := sys.Program(b.program)
	if err != nil {
		return err
	}
	if len(b.tracked) > 0 {
		return b.track(ctx, sys, table, program)
	}
	if !given {
		if table.Empty() {
			return usagef("no device is in %s yet: give --era, --data and --meta, or --track", boot.TabPath)
		}
		return b.change(ctx, sys, table, program)
	}
	e, err := b.entry(sys)
	if err != nil {
		return err
	}
	if table, err = table.With(e); err != nil {
		return err
	}
	if e.Stage == boot.StageInitramfs && !e.Linear() {
		if err := sys.Hibernation(); err != nil {
			return err
		}
	}
	if sys.Running() && !b.dryRun {
		if err := (boot.Opener{Options: b.g.eraOptions()}).Postpone(e); err != nil {
			return err
		}
	}
	if err := b.change(ctx, sys, table, program); err != nil || b.dryRun {
		return err
	}
	b.advise(e)
	return nil
}

// entry resolves the names and, on the running system, checks the devices.
func (b *bootInstall) entry(sys *boot.System) (boot.Entry, error) {
	e := boot.Entry{Name: cmp.Or(b.name, b.linear), Create: int64(b.create)}
	var err error
	if e.Data, err = boot.Resolve(b.data, !sys.Running()); err == nil && b.linear == "" {
		e.Meta, err = boot.Resolve(b.meta, !sys.Running())
	}
	if err != nil {
		return e, err
	}
	switch e.Stage = boot.Stage(b.stage.value); {
	case e.Stage == "auto" && !sys.Running():
		e.Stage = boot.StageInitramfs
	case e.Stage == "auto":
		if e.Stage, err = boot.StageOf(e.Data); err != nil {
			return e, err
		}
	}
	if err := e.Check(); err != nil || !sys.Running() || e.Linear() {
		return e, err
	}
	return e, e.CheckDevices()
}

// advise says what is left to be done by hand.
func (b *bootInstall) advise(e boot.Entry) {
	if e.Stage == boot.StageInitramfs {
		fmt.Fprintf(b.out, "then boot with: root=%s (see \"tidemark boot install --help\")\n", e.Path())
	}
	fmt.Fprintf(b.out, "in /etc/fstab: %s in place of %s; UUID= and LABEL= may stay\n", e.Path(), e.Data)
}
