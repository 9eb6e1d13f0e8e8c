package block

import "bytes"

// bufferAlign suits direct I/O on every disk: logical sectors are at most 4 KiB.
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
