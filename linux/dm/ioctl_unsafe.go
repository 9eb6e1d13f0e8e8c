package dm

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl makes one call with a buffer that starts with a header, and repeats it when
// a signal interrupts it: each of the calls can be repeated.
func ioctl(file *os.File, cmd command, buf []byte) error {
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var errno unix.Errno
	err = conn.Control(func(fd uintptr) {
		for {
			_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, cmd.number(), uintptr(unsafe.Pointer(unsafe.SliceData(buf))))
			if errno != unix.EINTR {
				return
			}
		}
	})
	switch {
	case err != nil:
		return err
	case errno != 0:
		return errno
	}
	return nil
}
