package btrfs

import (
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// forget calls the ioctl with a struct btrfs_ioctl_vol_args.
func forget(f *os.File, args *[argsBytes]byte) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), forgetDev, uintptr(unsafe.Pointer(args)))
	runtime.KeepAlive(f)
	if errno != 0 {
		return errno
	}
	return nil
}
