package era

import (
	"io"
)

// device reads whole blocks and trusts none of them.
type device struct {
	r      io.ReaderAt
	blocks uint64 // addresses below this may be pointed at
}

// inside refuses addresses that no tree may point at.
func (d *device) inside(a Addr, object string) error {
	if uint64(a) >= d.blocks {
		return damage(min(a, MaxMetadataBlocks), object, "address %d is past the %d blocks of the metadata", a, d.blocks)
	}
	if a == 0 {
		return damage(a, object, "address 0 is the superblock's")
	}
	return nil
}

// read fills buf with one block of the given type, verified.
func (d *device) read(a Addr, k kind, buf []byte) error {
	if err := d.inside(a, k.String()); err != nil {
		return err
	}
	if err := d.raw(a, k, buf); err != nil {
		return err
	}
	return verify(a, k, buf)
}

// raw fills buf with the blocks from a on, not verified.
func (d *device) raw(a Addr, k kind, buf []byte) error {
	n, err := d.r.ReadAt(buf, a.Offset())
	if n == len(buf) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return unreadable(a, k.String(), err)
}

// verify checks what every block has: its checksum and its own address.
func verify(a Addr, k kind, b []byte) error {
	if got, want := le.Uint32(b), checksum(k, b); got != want {
		return damage(a, k.String(), "checksum %#08x, want %#08x", got, want)
	}
	if own := le.Uint64(b[k.blocknr():]); own != uint64(a) {
		return damage(a, k.String(), "written for block %d, found at block %d", own, uint64(a))
	}
	return nil
}

// bitmap is a set of small numbers.
type bitmap []uint64

func newBitmap(n uint64) bitmap { return make(bitmap, ceilDiv(n, 64)) }

// add puts i in the set and says whether it was new.
func (b bitmap) add(i uint64) bool {
	bit := uint64(1) << (i & 63)
	old := b[i>>6]
	b[i>>6] = old | bit
	return old&bit == 0
}

// has says whether i is in the set.
func (b bitmap) has(i uint64) bool {
	return i>>6 < uint64(len(b)) && b[i>>6]>>(i&63)&1 != 0
}

// fill puts [lo, hi) in the set.
func (b bitmap) fill(lo, hi uint64) {
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
