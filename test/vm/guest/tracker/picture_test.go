//go:build linux

package tracker_test

import (
	"hash/maphash"
	"testing"

	"tidemark/block"
	"tidemark/extent"
)

// picture is the content of a device, as a hash of each granule: guests are small.
type picture struct {
	seed   maphash.Seed
	hashes []uint64
}

// look takes a picture of a device.
func look(t *testing.T, d *block.Device) *picture {
	t.Helper()
	p := newPicture(d)
	p.copy(t, d, extent.NewSet(extent.Extent{Len: d.Size()}))
	return p
}

// newPicture is a picture with nothing on it, for copy.
func newPicture(d *block.Device) *picture {
	return &picture{seed: maphash.MakeSeed(), hashes: make([]uint64, d.Size()/granule)}
}

// copy takes the part of the picture that is in set.
func (p *picture) copy(t *testing.T, d *block.Device, set extent.Set) {
	t.Helper()
	buf := block.AlignedBuffer(1 << 20)
	for _, e := range set.Align(granule, d.Size()).Extents() {
		for off := e.Off; off < e.End(); off += int64(len(buf)) {
			part := buf[:min(int64(len(buf)), e.End()-off)]
			if _, err := d.ReadAt(part, off); err != nil {
				t.Fatal(err)
			}
			for i := 0; i < len(part); i += granule {
				p.hashes[(off+int64(i))/granule] = maphash.Bytes(p.seed, part[i:i+granule])
			}
		}
	}
}

// differences is where a later picture, made by again, differs.
func (p *picture) differences(q *picture) extent.Set {
	var b extent.Builder
	for i := range p.hashes {
		if p.hashes[i] != q.hashes[i] {
			b.Add(extent.Extent{Off: int64(i) * granule, Len: granule})
		}
	}
	return b.Set()
}

// again is a second picture of the device.
func (p *picture) again(t *testing.T, d *block.Device) *picture {
	t.Helper()
	q := &picture{seed: p.seed, hashes: make([]uint64, len(p.hashes))}
	q.copy(t, d, extent.NewSet(extent.Extent{Len: d.Size()}))
	return q
}
