// Package boot makes dm-era devices come up when a machine starts, before anything
// on them is mounted.
//
// It owns the table /etc/tidemark/era.conf, one era device a line, and the files that
// are made from it: a hook and boot script of initramfs-tools, a module of dracut, a
// systemd unit and a udev rule. It writes and removes them, tells what became of them
// and looks into the initramfs images that hold copies (Status), and it is what these
// files call to open the devices (Opener).
//
// # What must never happen
//
// A write to the data device that the era device does not see is a change that no
// later copy finds. So nothing on the data device is mounted in its place by a boot
// that goes through these files:
//
//   - The boot script and the dracut module stop the boot, with a shell and a remedy,
//     as long as a device of the initramfs is not open; a unit that fails keeps
//     local-fs.target from being reached.
//   - The udev rule takes the names by UUID and label away from the data device. The era
//     device, which holds the same filesystem, is the only one that has them.
//   - Where the boot loader names the data device itself, Opener gives the era device
//     to be mounted in its place.
//
// An open era device holds its data device exclusively: the kernel refuses a mount.
//
// A boot can go past them: an initramfs that was made without them, as one for rescue,
// or none. Then the system that runs writes down, by tidemark-era-note.service, that
// the metadata lacks what is written now (Opener.Note), and marks from before are not
// believed. A system that does not have these files, as one on a stick, writes nothing
// down: after it has written to the data device the metadata must be made anew. So must
// it after a resume from hibernation that began past an open era device, for the older
// kernel goes on with what it had in memory; installing is refused where hibernation is
// set up, and a device is not opened beside a system that hibernates on a swap partition
// (Hibernated); one in a swap file is not seen.
//
// # What it refuses
//
// Device names that another boot may give to another disk; files that are there and
// that it did not write, or that were changed since; names that would need quoting
// in any of the files.
//
// # Power cuts
//
// A file is written beside its name, synced and renamed. The record of what is ours
// (/var/lib/tidemark/boot.json) is written before and after: a file that a cut leaves
// old or new is known as ours in both states.
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
	// ErrTab means a table of era devices that makes no sense.
	ErrTab = errors.New("bad table of era devices")
	// ErrNoEntry means an era device that is not in the table.
	ErrNoEntry = errors.New("no such era device in " + TabPath)
	// ErrUnsuitable means a system that lacks what would start the era device.
	ErrUnsuitable = errors.New("the system cannot start it")
	// ErrHibernation means a system that may be resumed after its era devices were opened.
	ErrHibernation = errors.New("hibernation spoils the metadata of era devices")
	// ErrNotOpen means that an era device is not open after an attempt to open it.
	ErrNotOpen = errors.New("the era device is not open")
)
