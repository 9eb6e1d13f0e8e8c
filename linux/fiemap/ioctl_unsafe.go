package fiemap

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl makes a call that reads and writes a buffer, which must not be empty.
func ioctl(f *os.File, request uintptr, buf []byte) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(&buf[0])))
	return errno
}
