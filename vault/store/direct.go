package store

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// directLeast is from which length on a file is written past the page cache, in bytes.
	directLeast = 1 << 20
	pageSize    = 4096
)

// uncached is a new file, written by one call. What is large goes past the page cache: to copy a pack
// into it costs as much as to seal it, and what is stored is seldom read soon. Sync is as needed as
// without.
type uncached struct{ *os.File }

// Write implements io.Writer. Where the filesystem or the address of p is not fit for it, and for the
// last bytes, it goes through the page cache, which the kernel keeps coherent.
func (f uncached) Write(p []byte) (n int, err error) {
	if whole := len(p) &^ (pageSize - 1); whole >= directLeast && f.direct(unix.O_DIRECT) == nil {
		n, err = f.File.Write(p[:whole])
		if err != nil && !errors.Is(err, unix.EINVAL) {
			return n, err
		}
		if err := f.direct(0); err != nil {
			return n, err
		}
	}
	rest, err := f.File.Write(p[n:])
	return n + rest, err
}

// direct turns direct I/O on or off.
func (f uncached) direct(flag int) error {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_SETFL, flags&^unix.O_DIRECT|flag)
	}
	return os.NewSyscallError("fcntl", err)
}
