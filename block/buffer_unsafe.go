package block

import "unsafe"

// AlignedBuffer returns n zero bytes whose address is a multiple of 4096, as
// direct I/O demands.
func AlignedBuffer(n int) []byte {
	raw := make([]byte, n+bufferAlign)
	skip := 0
	if rest := int(uintptr(unsafe.Pointer(unsafe.SliceData(raw))) % bufferAlign); rest != 0 {
		skip = bufferAlign - rest
	}
	return raw[skip : skip+n : skip+n]
}
