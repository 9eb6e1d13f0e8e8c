package vault

import (
	"context"

	"tidemark/extent"
	format "tidemark/format/vault"
)

// Diff returns the extents in which two points may differ: where their maps say the same they do
// not. What lies behind the end of the smaller one differs.
func (v *Vault) Diff(ctx context.Context, a, b Point) (extent.Set, error) {
	d := differ{a: v.treeOf(a.Point), b: v.treeOf(b.Point)}
	level := format.Level(max(a.Size, b.Size))
	if err := d.nodes(ctx, d.a.top(level), d.b.top(level)); err != nil {
		return extent.Set{}, err
	}
	end := extent.Extent{Off: min(a.Size, b.Size), Len: max(a.Size, b.Size) - min(a.Size, b.Size)}
	return d.found.Set().Clip(extent.Extent{Len: end.Off}).Union(extent.NewSet(end)), nil
}

type differ struct {
	a, b  tree
	found extent.Builder
}

func (d *differ) nodes(ctx context.Context, a, b node) error {
	if a == b || a.empty() && b.empty() {
		return nil
	}
	if a.level == 0 {
		return d.leaf(ctx, a, b)
	}
	below := map[int][2]node{}
	for side, t := range []tree{d.a, d.b} {
		err := t.children(ctx, [2]node{a, b}[side], everywhere, func(i int, child node) error {
			both, ok := below[i]
			if !ok {
				both = [2]node{{level: child.level, off: child.off}, {level: child.level, off: child.off}}
			}
			both[side] = child
			below[i] = both
			return nil
		})
		if err != nil {
			return err
		}
	}
	for i := range format.Fanout {
		if both, ok := below[i]; ok {
			if err := d.nodes(ctx, both[0], both[1]); err != nil {
				return err
			}
		}
	}
	return nil
}

// leaf compares two leaf pages: walking both, from one place where either changes to the next.
func (d *differ) leaf(ctx context.Context, a, b node) error {
	var pages [2]format.Leaf
	for side, n := range []node{a, b} {
		if n.ref.IsZero() {
			continue
		}
		var err error
		if pages[side], err = d.a.v.leaf(ctx, n.ref); err != nil {
			return err
		}
	}
	for at := int64(0); at < format.LeafSize; {
		x, xEnd := where(&pages[0], at)
		y, yEnd := where(&pages[1], at)
		end := min(xEnd, yEnd)
		if x != y {
			d.found.Add(extent.Extent{Off: a.off + at, Len: end - at})
		}
		at = end
	}
	return nil
}

// place is a byte of a segment; zero: of none.
type place struct {
	ref format.Ref
	at  int64
}

// where returns what lies at a byte of a page, and up to where that goes on. It takes the entries
// before it from the page.
func where(l *format.Leaf, at int64) (place, int64) {
	for len(*l) > 0 && (*l)[0].Off+(*l)[0].Len <= at {
		*l = (*l)[1:]
	}
	switch {
	case len(*l) == 0:
		return place{}, format.LeafSize
	case (*l)[0].Off > at:
		return place{}, (*l)[0].Off
	}
	e := (*l)[0]
	return place{e.Ref, e.At + at - e.Off}, e.Off + e.Len
}
