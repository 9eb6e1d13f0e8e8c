// Package btrfs has the kernel forget block devices that it took for a part of a Btrfs.
//
// For most uses, call [Forget]. The kernel remembers each device that it has seen a Btrfs on,
// also when the device is gone, and may take it for a member of one with the same UUID. The
// package holds no state; its functions may be called by several goroutines at once.
package btrfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// control is the device that the ioctls go to, of the module btrfs.
const control = "/dev/btrfs-control"

const (
	forgetDev  = 0x50009405 // BTRFS_IOC_FORGET_DEV (include/uapi/linux/btrfs.h), since Linux 5.4
	argsBytes  = 4096       // of struct btrfs_ioctl_vol_args
	nameOffset = 8          // of its name, which ends in a zero
)

// Forget has the kernel forget that there is a Btrfs on the block device at path, unless it
// is mounted. That is no error, nor is one that it does not know.
func Forget(path string) error {
	var args [argsBytes]byte
	if len(path) >= argsBytes-nameOffset {
		return fmt.Errorf("btrfs: %s: %w", path, unix.ENAMETOOLONG)
	}
	copy(args[nameOffset:], path)
	f, err := os.OpenFile(control, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the module is not there: it remembers nothing
	}
	if err != nil {
		return fmt.Errorf("btrfs: %w", err)
	}
	defer f.Close()
	if err := forget(f, &args); err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("btrfs: forget %s: %w", path, err)
	}
	return nil
}
