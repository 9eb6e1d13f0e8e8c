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

// getter returns what fill gets parts of segments with.
func (v *Vault) getter(ctx context.Context) func(ref format.Ref, at int64, p []byte) error {
	return func(ref format.Ref, at int64, p []byte) error { return v.copySegment(ctx, ref, at, p) }
}

// fill fills p with what the entries of a leaf page say of the bytes from off on, from the start
// of the page; get copies those of a segment.
func fill(l format.Leaf, p []byte, off int64, get func(ref format.Ref, at int64, p []byte) error) error {
	at, end := off, off+int64(len(p))
	for _, e := range reaching(l, off) {
		if e.Off >= end {
			break
		}
		from, to := max(e.Off, off), min(e.Off+e.Len, end)
		clear(p[at-off : from-off])
		at = to
		if err := get(e.Ref, e.At+from-e.Off, p[from-off:to-off:to-off]); err != nil {
			return err
		}
	}
	clear(p[at-off:])
	return nil
}

// reaching returns the entries of a page that end behind a byte of it.
func reaching(l format.Leaf, off int64) format.Leaf {
	return l[sort.Search(len(l), func(i int) bool { return l[i].Off+l[i].Len > off }):]
}

// Data returns the parts of e that may hold anything but zeros.
func (r *Reader) Data(e extent.Extent) (extent.Set, error) {
	var b extent.Builder
	err := r.leaves(r.ctx, e, func(n node) error {
		l, err := r.v.leaf(r.ctx, n.ref)
		for _, entry := range reaching(l, e.Off-n.off) {
			if n.off+entry.Off >= e.End() {
				break
			}
			b.Add(extent.Extent{Off: n.off + entry.Off, Len: entry.Len}.Intersect(e))
		}
		return err
	})
	if err != nil {
		return extent.Set{}, fmt.Errorf("vault: %v: %w", r.p.Name, err)
	}
	return b.Set().Clip(extent.Extent{Len: r.size}), nil
}
