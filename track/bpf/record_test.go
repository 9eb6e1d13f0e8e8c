package bpf

import (
	"testing"

	"tidemark/linux/bpf"
)

func TestDefaultBlockSizeKeepsTheBitmapWithin32MiB(t *testing.T) {
	const gib, tib = int64(1) << 30, int64(1) << 40
	const bits, bytes = bpf.MaxBlocks, bpf.MaxBlocks / 8
	for _, c := range []struct {
		size, want int64
		most       uint64
	}{
		{512, 4096, bits},
		{tib - 512, 4096, bits},
		{tib, 4096, bits},
		{tib + 1, 8192, bits},
		{tib + 4096, 8192, bits},
		{2 * tib, 8192, bits},
		{2*tib + 1, 16384, bits},
		{16 * tib, 64 << 10, bits},
		{16*tib + 512, 128 << 10, bits},
		{1 << 60, 4 * gib, bits},
		{tib / 8, 4096, bytes},
		{tib/8 + 1, 8192, bytes},
		{16 * tib, 512 << 10, bytes},
	} {
		got := defaultBlockSize(c.size, c.most)
		if got != c.want {
			t.Errorf("%d bytes: blocks of %d, want %d", c.size, got, c.want)
		}
		if blocks := (c.size + got - 1) / got; uint64(blocks) > c.most/2 {
			t.Errorf("%d bytes: %d blocks", c.size, blocks)
		}
		if err := validBlockSize(got, c.size, c.most); err != nil && got <= maxBlockSize {
			t.Errorf("%d bytes: %v", c.size, err)
		}
	}
}
