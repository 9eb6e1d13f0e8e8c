package block

import "bytes"

// bufferAlign is the address that direct I/O wants a buffer to have: kernels before 6.1
// a multiple of the logical sector, of which theirs are at most 4 KiB; later ones less.
const bufferAlign = 4096

var zeroPage [bufferAlign]byte

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
