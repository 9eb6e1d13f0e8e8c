// Package mounts answers which mounted filesystems live on a block device, and
// what else uses one.
//
// For most uses, call [Read], and ask the [Table] for the filesystems on a device
// (Table.On) or for all its users (Table.UseOf). Before writing to a device without users,
// call [Probe].
//
// The package owns the reading of mountinfo and swaps, the stacking of block devices in
// sysfs, and the signatures that filesystems, volume managers and partition tables leave
// on a disk. It follows a device through its partitions, through holders (device-mapper,
// md, bcache), through loop devices over it or over a file on one of its filesystems, and
// through all devices of a btrfs, an XFS or an ext. It sees the mounts of other mount namespaces as far as
// /proc shows them.
//
// It refuses to guess: a device whose holder it cannot see (a lazily unmounted filesystem,
// a ZFS pool) is reported as claimed, without a name. It writes to no device and changes
// no mount; [Detached] makes one that nobody sees.
//
// A Table is a snapshot and never changes; it may be used by several goroutines
// at once. It grows old as soon as something is mounted: read a new one.
package mounts

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"tidemark/linux/sysfs"
)

// system says where the kernel's view of itself is mounted.
type system struct{ proc, sys string }

// Filesystem is one mounted superblock, however often it is mounted.
type Filesystem struct {
	// Dev is the number in mountinfo. For a btrfs it is an anonymous number, which never
	// equals st_dev of its files.
	Dev sysfs.Dev
	// Type is the kernel's name, "ext4".
	Type string
	// Source is the device as given to mount.
	Source string
	// ReadOnly says that the superblock is read-only. A read-only mount of a
	// writable one does not count.
	ReadOnly bool
	// Mounts are its mountpoints in the order they were mounted, those of this
	// process's namespace first. Never empty.
	Mounts []Mount
	// Members are the block devices that it stores data on.
	Members []sysfs.Dev

	options string // of the superblock
	order   int    // position in mount order
}

// Mount is one place where a filesystem can be reached.
type Mount struct {
	ID    int    // of the mount, as in mountinfo; reused by the kernel
	Point string // path of the mountpoint, seen from the root of process PID
	Root  string // path in the filesystem of what the mount shows; "/" is all of it
	PID   int    // a process that sees it; 0 is the caller
}

// Path returns a path by which this process can try to reach the mount.
func (m Mount) Path() string {
	if m.PID == 0 {
		return m.Point
	}
	return fmt.Sprintf("/proc/%d/root%s", m.PID, m.Point)
}

// String names the filesystem for people: "ext4 on /srv (/dev/sda1)".
func (f Filesystem) String() string {
	at := f.Mounts[0].Point
	if f.Mounts[0].PID != 0 {
		at += fmt.Sprintf(" of process %d", f.Mounts[0].PID)
	}
	return fmt.Sprintf("%s on %s (%s)", f.Type, at, f.Source)
}

// DeviceOf returns the number of the block device at path. The error wraps
// unix.ENOTBLK when path leads to another kind of file.
func DeviceOf(path string) (sysfs.Dev, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return sysfs.Dev{}, fmt.Errorf("mounts: %w", &os.PathError{Op: "stat", Path: path, Err: err})
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return sysfs.Dev{}, fmt.Errorf("mounts: %s: %w", path, unix.ENOTBLK)
	}
	return sysfs.DevOf(st.Rdev), nil
}
