package block

import "unsafe"

// AlignedBuffer returns n zero bytes whose address is a multiple of 4096, as
// direct I/O demands.
func AlignedBuffer(n int) []byte { return aligned(make([]byte, n+bufferAlign), n, bufferAlign) }

// aligned returns n bytes of raw, which has as many more, whose address is a multiple of align.
func aligned(raw []byte, n, align int) []byte {
	skip := 0
	if rest := int(uintptr(unsafe.Pointer(unsafe.SliceData(raw))) % uintptr(align)); rest != 0 {
		skip = align - rest
	}
	return raw[skip : skip+n : skip+n]
}
