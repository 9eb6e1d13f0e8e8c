package bpf

import (
	"sync/atomic"
	"unsafe"
)

// orWord sets bits of the n-th word of memory that programs in the kernel set bits of as well.
func orWord(b []byte, n int64, mask uint64) {
	atomic.OrUint64((*uint64)(unsafe.Pointer(&b[8*n:][:8][0])), mask)
}
