package dm

import (
	"bytes"
	"strings"

	"golang.org/x/sys/unix"

	"tidemark/linux/sysfs"
)

// kernelLog reads what the kernel logs from the moment it was opened: the only
// place where it says why it refuses a table. It is an aid to messages; where it
// cannot be read, there is none.
type kernelLog int // a file descriptor; -1: none

func openKernelLog() kernelLog {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		unix.Close(fd)
		return -1
	}
	return kernelLog(fd)
}

func (l kernelLog) close() {
	if l >= 0 {
		unix.Close(int(l))
	}
}

// about returns what was logged of the tables of a device, as "; the kernel says: …".
func (l kernelLog) about(dev sysfs.Dev) string {
	if l < 0 {
		return ""
	}
	// "device-mapper: table: 253:0: era: Error opening metadata device"
	prefix := "device-mapper: table: " + dev.String() + ": "
	var said []string
	record := make([]byte, 8<<10) // CONSOLE_EXT_LOG_MAX; one read returns one record
	for {
		n, err := unix.Read(int(l), record)
		if err == unix.EINTR || err == unix.EPIPE {
			continue // EPIPE: records were lost, the next read goes on
		}
		if err != nil || n == 0 {
			break
		}
		_, message, _ := bytes.Cut(record[:n], []byte(";"))
		line, _, _ := strings.Cut(string(message), "\n")
		if reason, ok := strings.CutPrefix(line, prefix); ok {
			said = append(said, reason)
		}
	}
	if len(said) == 0 {
		return ""
	}
	return "; the kernel says: " + strings.Join(said, "; ")
}
