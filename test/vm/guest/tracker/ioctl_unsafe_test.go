//go:build linux

package tracker_test

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rangeIoctl calls BLKDISCARD, BLKZEROOUT or the like: its argument is two 64-bit
// numbers, start and length in bytes (include/uapi/linux/fs.h).
func rangeIoctl(f *os.File, request uint, off, n int64) error {
	arg := [2]uint64{uint64(off), uint64(n)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(request), uintptr(unsafe.Pointer(&arg)))
	if errno != 0 {
		return errno
	}
	return nil
}
