package mounts

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Detached mounts the filesystem of a kind on a device, read-only and where nobody sees it, and
// returns its topmost folder; it is unmounted when that is closed. Flags are those of its filesystem
// that take no value.
func Detached(kind, device string, flags ...string) (*os.File, error) {
	fail := func(err error) (*os.File, error) {
		return nil, fmt.Errorf("mounts: look into the %s on %s: %w", kind, device, err)
	}
	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(fs)
	err = unix.FsconfigSetString(fs, "source", device)
	for _, flag := range append([]string{"ro"}, flags...) {
		if err == nil {
			err = unix.FsconfigSetFlag(fs, flag)
		}
	}
	if err == nil {
		err = unix.FsconfigCreate(fs)
	}
	if err != nil {
		return fail(err)
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(mount)
	top, err := unix.Openat(mount, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	return os.NewFile(uintptr(top), device), nil
}
