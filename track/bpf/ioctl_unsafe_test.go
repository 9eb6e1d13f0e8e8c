package bpf_test

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"tidemark/extent"
)

// ioctlRange calls BLKDISCARD or BLKZEROOUT.
func ioctlRange(fd int, req uint, e extent.Extent) error {
	arg := [2]uint64{uint64(e.Off), uint64(e.Len)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(req), uintptr(unsafe.Pointer(&arg)))
	if errno != 0 {
		return errno
	}
	return nil
}
