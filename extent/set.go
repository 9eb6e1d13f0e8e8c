package extent

import (
	"slices"
	"sort"
)

// Set is a sorted list of disjoint extents between which there is always a gap.
// The zero value is the empty set. Its methods return new sets and leave their
// operands alone; each takes time linear in the number of extents.
type Set struct {
	exts []Extent
}

// NewSet returns the set of bytes that the extents cover. They may come in any
// order and may overlap; empty ones are dropped.
func NewSet(exts ...Extent) Set {
	sorted := slices.Clone(exts)
	slices.SortFunc(sorted, func(a, b Extent) int {
		switch {
		case a.Off < b.Off:
			return -1
		case a.Off > b.Off:
			return 1
		}
		return 0
	})
	var b Builder
	for _, e := range sorted {
		b.Add(e)
	}
	return b.Set()
}

// Extents returns the extents in ascending order. The slice is the set's own:
// it must not be changed.
func (s Set) Extents() []Extent { return s.exts }

// Empty reports whether the set covers no byte.
func (s Set) Empty() bool { return len(s.exts) == 0 }

// Len returns the number of extents.
func (s Set) Len() int { return len(s.exts) }

// Bytes returns the number of bytes covered.
func (s Set) Bytes() int64 {
	var n int64
	for _, e := range s.exts {
		n += e.Len
	}
	return n
}

// End returns the offset behind the last byte covered, zero for the empty set.
func (s Set) End() int64 {
	if s.Empty() {
		return 0
	}
	return s.exts[len(s.exts)-1].End()
}

// Contains reports whether the byte at off is in the set.
func (s Set) Contains(off int64) bool {
	i := s.search(off)
	return i < len(s.exts) && s.exts[i].Off <= off
}

// Covers reports whether every byte of e is in the set.
func (s Set) Covers(e Extent) bool {
	if e.Empty() {
		return true
	}
	i := s.search(e.Off)
	return i < len(s.exts) && s.exts[i].Off <= e.Off && s.exts[i].End() >= e.End()
}

// Equal reports whether both sets cover the same bytes.
func (s Set) Equal(t Set) bool { return slices.Equal(s.exts, t.exts) }

// Union returns the bytes that are in s, in t or in both.
func (s Set) Union(t Set) Set {
	switch {
	case s.Empty():
		return t
	case t.Empty():
		return s
	}
	b := Builder{exts: make([]Extent, 0, len(s.exts)+len(t.exts))}
	i, j := 0, 0
	for i < len(s.exts) || j < len(t.exts) {
		if j == len(t.exts) || i < len(s.exts) && s.exts[i].Off <= t.exts[j].Off {
			b.Add(s.exts[i])
			i++
		} else {
			b.Add(t.exts[j])
			j++
		}
	}
	return b.Set()
}

// Intersect returns the bytes that are in both sets.
func (s Set) Intersect(t Set) Set {
	var b Builder
	i, j := 0, 0
	for i < len(s.exts) && j < len(t.exts) {
		b.Add(s.exts[i].Intersect(t.exts[j]))
		if s.exts[i].End() < t.exts[j].End() {
			i++
		} else {
			j++
		}
	}
	return b.Set()
}

// Subtract returns the bytes that are in s and not in t.
func (s Set) Subtract(t Set) Set {
	var b Builder
	j := 0
	for _, e := range s.exts {
		for j < len(t.exts) && t.exts[j].End() <= e.Off {
			j++
		}
		off := e.Off
		for k := j; k < len(t.exts) && t.exts[k].Off < e.End(); k++ {
			b.Add(Extent{Off: off, Len: t.exts[k].Off - off})
			off = max(off, t.exts[k].End())
		}
		b.Add(Extent{Off: off, Len: e.End() - off})
	}
	return b.Set()
}

// Clip returns the part of the set that lies in e.
func (s Set) Clip(e Extent) Set {
	var b Builder
	for i := s.search(e.Off); i < len(s.exts) && s.exts[i].Off < e.End(); i++ {
		b.Add(s.exts[i].Intersect(e))
	}
	return b.Set()
}

// Shift returns the set with delta bytes added to every offset: a partition's
// view of its disk is disk.Clip(slice).Shift(-slice.Off).
func (s Set) Shift(delta int64) Set {
	exts := slices.Clone(s.exts)
	for i := range exts {
		exts[i].Off += delta
	}
	return Set{exts: exts}
}

// Align returns the smallest set that covers s and whose extents start and end
// at multiples of block bytes, cut off at limit.
func (s Set) Align(block, limit int64) Set {
	var b Builder
	for _, e := range s.exts {
		b.Add(e.Align(block, limit))
	}
	return b.Set()
}

// search returns the index of the first extent that ends behind off.
func (s Set) search(off int64) int {
	return sort.Search(len(s.exts), func(i int) bool { return s.exts[i].End() > off })
}

// Builder collects extents in ascending order of offset and merges those that
// touch. The zero value is ready for use.
type Builder struct {
	exts []Extent
}

// Add appends e, which must not start before the extent added last; empty
// extents are ignored.
func (b *Builder) Add(e Extent) {
	if e.Empty() {
		return
	}
	if n := len(b.exts); n > 0 && e.Off <= b.exts[n-1].End() {
		last := &b.exts[n-1]
		if e.Off < last.Off {
			panic("extent: Builder.Add: extents out of order")
		}
		last.Len = max(last.End(), e.End()) - last.Off
		return
	}
	b.exts = append(b.exts, e)
}

// Set returns what was added and leaves the builder empty.
func (b *Builder) Set() Set {
	s := Set{exts: b.exts}
	b.exts = nil
	return s
}
