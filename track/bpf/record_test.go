package bpf

import (
	"testing"

	"tidemark/linux/bpf"
)

func TestDefaultBlockSizeKeepsTheBitmapWithin32MiB(t *testing.T) {
	const gib, tib = int64(1) << 30, int64(1) << 40
	for _, c := range []struct{ size, want int64 }{
		{512, 4096},
		{tib - 512, 4096},
		{tib, 4096},
		{tib + 1, 8192},
		{tib + 4096, 8192},
		{2 * tib, 8192},
		{2*tib + 1, 16384},
		{16 * tib, 64 << 10},
		{16*tib + 512, 128 << 10},
		{1 << 60, 4 * gib},
	} {
		got := defaultBlockSize(c.size)
		if got != c.want {
			t.Errorf("%d bytes: blocks of %d, want %d", c.size, got, c.want)
		}
		if blocks := (c.size + got - 1) / got; uint64(blocks) > bpf.MaxBlocks || blocks > maxBitmap {
			t.Errorf("%d bytes: %d blocks", c.size, blocks)
		}
		if err := validBlockSize(got, c.size); err != nil && got <= maxBlockSize {
			t.Errorf("%d bytes: %v", c.size, err)
		}
	}
}
