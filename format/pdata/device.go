package pdata

import (
	"io"

	"tidemark/block"
)

// Device reads whole blocks and trusts none of them. Reads are into memory aligned to
// BlockSize where the caller's is, so that R may have been opened with O_DIRECT.
type Device struct {
	Format
	R      io.ReaderAt
	Blocks uint64 // addresses below this may be pointed at
}

// Buffer returns memory for n blocks that any R can read into.
func Buffer(n int) []byte { return block.AlignedBuffer(n * BlockSize) }

// Inside refuses addresses that no tree may point at.
func (d *Device) Inside(a Addr, object string) error {
	if uint64(a) >= d.Blocks {
		return d.Damage(min(a, MaxMetadataBlocks), object, "address %d is past the %d blocks of the metadata", a, d.Blocks)
	}
	if a == 0 {
		return d.Damage(a, object, "address 0 is the superblock's")
	}
	return nil
}

// Read fills buf with one block of the given type, verified.
func (d *Device) Read(a Addr, k Kind, buf []byte) error {
	if err := d.Inside(a, k.String()); err != nil {
		return err
	}
	if err := d.raw(a, k, buf); err != nil {
		return err
	}
	return d.Verify(a, k, buf)
}

// raw fills buf with the blocks from a on, not verified.
func (d *Device) raw(a Addr, k Kind, buf []byte) error {
	n, err := d.R.ReadAt(buf, a.Offset())
	if n == len(buf) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return d.Unreadable(a, k.String(), err)
}

// Bitmap is a set of small numbers.
type Bitmap []uint64

// NewBitmap returns a set for the numbers below n.
func NewBitmap(n uint64) Bitmap { return make(Bitmap, CeilDiv(n, 64)) }

// Add puts i in the set and says whether it was new.
func (b Bitmap) Add(i uint64) bool {
	bit := uint64(1) << (i & 63)
	old := b[i>>6]
	b[i>>6] = old | bit
	return old&bit == 0
}

// Has says whether i is in the set.
func (b Bitmap) Has(i uint64) bool {
	return i>>6 < uint64(len(b)) && b[i>>6]>>(i&63)&1 != 0
}

// Fill puts [lo, hi) in the set.
func (b Bitmap) Fill(lo, hi uint64) {
	for lo < hi && lo&63 != 0 {
		b[lo>>6] |= 1 << (lo & 63)
		lo++
	}
	for ; lo+64 <= hi; lo += 64 {
		b[lo>>6] = ^uint64(0)
	}
	for ; lo < hi; lo++ {
		b[lo>>6] |= 1 << (lo & 63)
	}
}
