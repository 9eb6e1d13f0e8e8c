package vault

import (
	"context"
	"fmt"
	"math"

	"tidemark/extent"
	format "tidemark/format/vault"
)

// tree is the map of a disk.
type tree struct {
	v    *Vault
	size int64 // of the disk, bytes
	root format.Ref
}

func (v *Vault) treeOf(p format.Point) tree {
	t := tree{v: v, size: p.Size}
	if p.Root != nil {
		t.root = *p.Root
	}
	return t
}

// node is a page of a tree, or where one would be.
type node struct {
	level int
	off   int64      // of the disk, bytes
	ref   format.Ref // zero: only zeros, unless above
	above bool       // it lies above the root
}

func (n node) empty() bool { return n.ref.IsZero() && !n.above }

// top returns the node of that level that covers the disk from its start.
func (t tree) top(level int) node {
	own := format.Level(t.size)
	return node{level: level, ref: t.root, above: level > own}.orEmpty(t.root)
}

// orEmpty makes nothing of a node whose tree has no pages.
func (n node) orEmpty(root format.Ref) node {
	if n.above {
		n.above, n.ref = !root.IsZero(), format.Ref{}
	}
	return n
}

// everywhere is an extent that reaches over any disk.
var everywhere = extent.Extent{Len: math.MaxInt64}

// children calls each for the pages below an inner node that are there, of those that reach into e.
func (t tree) children(ctx context.Context, n node, e extent.Extent, each func(i int, child node) error) error {
	switch {
	case n.empty():
		return nil
	case n.above:
		return each(0, t.top(n.level-1))
	}
	page, err := t.v.inner(ctx, n.ref, n.level)
	if err != nil {
		return err
	}
	cover := format.Covers(n.level - 1)
	for i := max(0, (e.Off-n.off)/cover); i < format.Fanout && n.off+i*cover < e.End(); i++ {
		if page[i].IsZero() {
			continue
		}
		child := node{level: n.level - 1, off: n.off + i*cover, ref: page[i]}
		if child.off < n.off || child.off >= t.size {
			return fmt.Errorf("vault: %v: page %d of a disk of %d bytes: %w", n.ref, i, t.size, format.ErrDamaged)
		}
		if err := each(int(i), child); err != nil {
			return err
		}
	}
	return nil
}

// at returns the node of that level that covers a byte of the disk.
func (t tree) at(ctx context.Context, level int, off int64) (node, error) {
	cover := format.Covers(level)
	nothing := node{level: level, off: off / cover * cover}
	n := t.top(max(level, format.Level(t.size)))
	if off >= format.Covers(n.level) && n.level < format.MaxLevel {
		return nothing, nil
	}
	for n.level > level && !n.empty() {
		cover := format.Covers(n.level - 1)
		next := node{level: n.level - 1, off: off / cover * cover}
		if n.above {
			if next.off == 0 {
				next = t.top(next.level)
			}
		} else {
			page, err := t.v.inner(ctx, n.ref, n.level)
			if err != nil {
				return n, err
			}
			next.ref = page[(next.off-n.off)/cover]
		}
		n = next
	}
	if n.level > level {
		return nothing, nil
	}
	return n, nil
}

// leafAt returns the entries of the leaf page at a byte of the disk, where its first byte lies.
func (t tree) leafAt(ctx context.Context, off int64) (format.Leaf, error) {
	if off >= t.size {
		return nil, nil
	}
	n, err := t.at(ctx, 0, off)
	if err != nil || n.ref.IsZero() {
		return nil, err
	}
	return t.v.leaf(ctx, n.ref)
}

// leaves calls each for the leaf pages that are there, in the order of the disk, of those that
// reach into e.
func (t tree) leaves(ctx context.Context, e extent.Extent, each func(n node) error) error {
	return t.below(ctx, t.top(format.Level(t.size)), e, each)
}

func (t tree) below(ctx context.Context, n node, e extent.Extent, each func(n node) error) error {
	covered := extent.Extent{Off: n.off, Len: min(format.Covers(n.level), t.size-n.off)}
	switch {
	case n.empty() || covered.Intersect(e).Empty():
		return nil
	case n.level == 0:
		return each(n)
	}
	return t.children(ctx, n, e, func(_ int, child node) error { return t.below(ctx, child, e, each) })
}

// leaf returns a leaf page, which must not be changed.
func (v *Vault) leaf(ctx context.Context, ref format.Ref) (format.Leaf, error) {
	if l, ok := v.leaves.get(ref); ok {
		return l, nil
	}
	b, err := v.segment(ctx, ref, true, nil)
	if err != nil {
		return nil, err
	}
	l, err := format.DecodeLeaf(b)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", ref, err)
	}
	v.leaves.put(ref, l)
	return l, nil
}

// inner returns an inner page, which must not be changed.
func (v *Vault) inner(ctx context.Context, ref format.Ref, level int) (*format.Inner, error) {
	if p, ok := v.inners.get(ref); ok {
		return p, nil
	}
	b, err := v.segment(ctx, ref, true, nil)
	if err != nil {
		return nil, err
	}
	p, err := format.DecodeInner(b, level)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", ref, err)
	}
	v.inners.put(ref, p)
	return p, nil
}
