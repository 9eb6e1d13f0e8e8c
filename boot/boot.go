// Package boot makes devices of device-mapper come up when a machine starts, before
// anything on them is mounted: dm-era devices, and linear ones, which make a plain disk or
// partition one that live snapshots can be taken of.
//
// For most uses, open the system with OpenSystem, change its table (System.Tab, Tab.With),
// and write the files with System.Plan and System.Apply. The files call Opener.Open at
// every boot.
//
// The package owns the table /etc/tidemark/era.conf, one device a line, and the files
// that are made from it: a hook and a boot script for initramfs-tools, a module for
// dracut, a systemd unit and a udev rule. System.Status tells what became of the files,
// and whether the initramfs images were made of them as they are now.
//
// # What must never happen
//
// A write to the data device that the era device does not see is a change that no later
// copy finds. So a boot that goes through these files never mounts the data device
// itself:
//
//   - While an era device of the initramfs is not open, the boot script and the dracut
//     module stop the boot with a shell and a remedy. A unit that fails keeps
//     local-fs.target from being reached.
//   - The udev rule takes the names by UUID and by label away from the data device. The
//     era device holds the same filesystem, and only the era device has these names.
//   - Where the boot loader names the data device itself, Tab.Instead names the era
//     device that is mounted in its place.
//
// An open era device holds its data device exclusively: the kernel refuses to mount it.
//
// # Linear devices
//
// A linear device has no metadata, and its data device may be used without it: only the
// snapshots need it. All of the above holds for it too, but for two things: a boot past it,
// or one after a power cut that left half of its files, is as it was before, with all names
// at the data device; and nothing is written down of such a boot. An open linear device
// takes the name by PARTUUID too.
//
// # A boot past the era device
//
// A boot can go past all of this, with an initramfs that was made without these files
// (one for rescue), or without any. The running system then writes down, by
// tidemark-era-note.service, that the metadata lacks what is written now (Opener.Note),
// and marks from before lose their value. A system without these files (a rescue system
// on a stick) writes nothing down: after it has written to the data device, the metadata
// must be made anew.
//
// # Hibernation
//
// A resumed kernel goes on with the metadata that it had in memory, and overwrites what
// the kernel of the initramfs has written to it. So the initramfs must not open an era
// device before a hibernated system is resumed:
//
//   - The initramfs opens nothing while the signature of a hibernated system is on any
//     block device (Hibernated).
//   - Installing is refused on a system that was told a device to resume from
//     (System.Hibernation).
//
// Not seen are a system that hibernates to a swap file, or to a device that appears only
// after the era devices were opened, and the settings of a system that does not run. After
// a resume past an open era device the metadata must be made anew.
//
// # What it refuses
//
// Device names that another boot may give to another disk; files that are in the way and
// that it did not write, or that were changed since; names that would need quoting in any
// of the files.
//
// # Power cuts
//
// A file is written beside its name, synced and renamed. The record of our files
// (/var/lib/tidemark/boot.json) is written before and after, with both contents of each
// file: a power cut leaves a file old or new, and the record knows both as ours.
//
// Values are for one goroutine at a time, and two programs must not install at once.
package boot

import "errors"

var (
	// ErrNoStableName means a device whose name may belong to another one at the next boot.
	ErrNoStableName = errors.New("no name of it is the same at every boot")
	// ErrNotOurs means a file that is in the way and that this package did not write.
	ErrNotOurs = errors.New("not written by tidemark")
	// ErrChanged means a file that was changed by hand since it was written.
	ErrChanged = errors.New("changed by hand since tidemark wrote it")
	// ErrTab means that the table of devices cannot be understood.
	ErrTab = errors.New("bad table of devices")
	// ErrNoEntry means a device that is not in the table.
	ErrNoEntry = errors.New("no such device in " + TabPath)
	// ErrUnsuitable means a system that lacks what would start the device.
	ErrUnsuitable = errors.New("the system cannot start it")
	// ErrHibernation means that a hibernated system may be resumed after its era devices
	// were opened.
	ErrHibernation = errors.New("hibernation spoils the metadata of era devices")
	// ErrNotOpen means that a device is not open after an attempt to open it.
	ErrNotOpen = errors.New("the device is not open")
)
