package vault

import (
	"context"
	"fmt"
	"io"
	"sort"

	"tidemark/extent"
	format "tidemark/format/vault"
)

// Reader has the bytes of a point. It is an io.ReaderAt and a sums.Sparse.
type Reader struct {
	tree
	ctx context.Context
	p   Point
}

// Reader returns a reader of a point, for as long as ctx lasts. What it reads is checked against
// the seals: it fails rather than giving other bytes than the point's.
func (v *Vault) Reader(ctx context.Context, p Point) *Reader {
	return &Reader{tree: v.treeOf(p.Point), ctx: ctx, p: p}
}

// Size returns the size of the disk in bytes.
func (r *Reader) Size() int64 { return r.size }

// ReadAt implements io.ReaderAt.
func (r *Reader) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("vault: %v: read at %d", r.p.Name, off)
	}
	if off >= r.size {
		return 0, io.EOF
	}
	want := p[:min(int64(len(p)), r.size-off)]
	for n < len(want) {
		at := off + int64(n)
		end := min(at/format.LeafSize*format.LeafSize+format.LeafSize, off+int64(len(want)))
		piece := want[n : n+int(end-at)]
		if err := r.readLeaf(piece, at); err != nil {
			return n, fmt.Errorf("vault: %v: bytes %v: %w", r.p.Name, extent.Extent{Off: at, Len: end - at}, err)
		}
		n += len(piece)
	}
	if n < len(p) {
		err = io.EOF
	}
	return n, err
}

// readLeaf fills p, which lies in one leaf page.
func (r *Reader) readLeaf(p []byte, off int64) error {
	l, err := r.leafAt(r.ctx, off)
	if err != nil {
		return err
	}
	return fill(l, p, off%format.LeafSize, r.v.getter(r.ctx))
}

// getter returns what fill gets segments from.
func (v *Vault) getter(ctx context.Context) func(format.Entry, []byte) ([]byte, error) {
	return func(e format.Entry, room []byte) ([]byte, error) { return v.segment(ctx, e.Ref, false, room) }
}

// fill fills p with what the entries of a leaf page say of the bytes from off on, from the start
// of the page. Segments come from get, which may put one into room: where it belongs, if all of
// the entry is wanted.
func fill(l format.Leaf, p []byte, off int64, get func(e format.Entry, room []byte) ([]byte, error)) error {
	at, end := off, off+int64(len(p))
	first := sort.Search(len(l), func(i int) bool { return l[i].Off+l[i].Len > off })
	for _, e := range l[first:] {
		if e.Off >= end {
			break
		}
		from, to := max(e.Off, off), min(e.Off+e.Len, end)
		clear(p[at-off : from-off])
		at = to
		part := p[from-off : to-off : to-off]
		var room []byte
		if e.At == 0 && e.Len == int64(len(part)) {
			room = part
		}
		plain, err := get(e, room)
		if err != nil {
			return err
		}
		if e.At+e.Len > int64(len(plain)) {
			return fmt.Errorf("vault: %v has %d bytes, and the map wants %d from %d on: %w", e.Ref, len(plain), e.Len, e.At, format.ErrDamaged)
		}
		if !lies(plain, room) {
			copy(part, plain[e.At+from-e.Off:])
		}
	}
	clear(p[at-off:])
	return nil
}

// lies reports whether b lies at the start of room.
func lies(b, room []byte) bool { return len(b) > 0 && len(room) > 0 && &b[0] == &room[0] }

// Data returns the parts of e that may hold anything but zeros.
func (r *Reader) Data(e extent.Extent) (extent.Set, error) {
	var b extent.Builder
	err := r.leaves(r.ctx, e, func(n node) error {
		l, err := r.v.leaf(r.ctx, n.ref)
		for _, entry := range l {
			b.Add(extent.Extent{Off: n.off + entry.Off, Len: entry.Len}.Intersect(e))
		}
		return err
	})
	if err != nil {
		return extent.Set{}, fmt.Errorf("vault: %v: %w", r.p.Name, err)
	}
	return b.Set().Clip(extent.Extent{Len: r.size}), nil
}
