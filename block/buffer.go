package block

import (
	"bytes"
	"errors"
	"io"

	"golang.org/x/sys/unix"
)

// bufferAlign is the address that direct I/O wants a buffer to have: kernels before 6.1
// a multiple of the logical sector, of which theirs are at most 4 KiB; later ones less.
const bufferAlign = 4096

// hugePage is what the large pages of most machines have, in bytes.
const hugePage = 2 << 20

// LargeBuffer returns n zero bytes in large pages, where the kernel has some: most of what memory
// costs that is used for the first time is the fault of each page. What is not touched takes none.
func LargeBuffer(n int) []byte {
	b := aligned(make([]byte, n+hugePage), n, hugePage)
	_ = unix.Madvise(b, unix.MADV_HUGEPAGE) // a kernel without them has small ones
	return b
}

var zeroPage [bufferAlign]byte

// ReadPadded reads len(p) bytes at off; what lies behind the end reads as zeros.
func ReadPadded(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		clear(p[n:])
		return nil
	}
	return err
}

// IsZero reports whether p holds nothing but zeros.
func IsZero(p []byte) bool {
	for len(p) > bufferAlign {
		if !bytes.Equal(p[:bufferAlign], zeroPage[:]) {
			return false
		}
		p = p[bufferAlign:]
	}
	return bytes.Equal(p, zeroPage[:len(p)])
}
