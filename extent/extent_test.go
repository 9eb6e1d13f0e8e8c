package extent_test

import (
	"math"
	"testing"

	"pgregory.net/rapid"

	"tidemark/extent"
)

const diskSize = 300

// model is a disk of diskSize bytes, one flag each.
type model [diskSize]bool

func (m *model) add(e extent.Extent) {
	for i := e.Off; i < e.End(); i++ {
		m[i] = true
	}
}

func (m *model) check(t *rapid.T, what string, s extent.Set) {
	t.Helper()
	var count int64
	for i := range m {
		if m[i] {
			count++
		}
		if s.Contains(int64(i)) != m[i] {
			t.Fatalf("%s: byte %d: in the set %v, want %v (%v)", what, i, !m[i], m[i], s.Extents())
		}
	}
	if s.Bytes() != count {
		t.Fatalf("%s: %d bytes, want %d", what, s.Bytes(), count)
	}
	prev := int64(-1)
	for _, e := range s.Extents() {
		if e.Off <= prev || e.Len <= 0 {
			t.Fatalf("%s: not sorted, disjoint and merged: %v", what, s.Extents())
		}
		prev = e.End()
	}
}

func drawExtents(t *rapid.T, label string) []extent.Extent {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) extent.Extent {
		off := rapid.Int64Range(0, diskSize).Draw(t, "off")
		return extent.Extent{Off: off, Len: rapid.Int64Range(0, min(40, diskSize-off)).Draw(t, "len")}
	}), 0, 20).Draw(t, label)
}

func drawSet(t *rapid.T, label string) (extent.Set, *model) {
	var m model
	exts := drawExtents(t, label)
	for _, e := range exts {
		m.add(e)
	}
	return extent.NewSet(exts...), &m
}

func TestSetsBehaveLikeArraysOfBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, ma := drawSet(t, "a")
		b, mb := drawSet(t, "b")
		clip := drawExtents(t, "clip")
		ma.check(t, "NewSet", a)

		var union, inter, sub, clipped model
		for i := range ma {
			union[i] = ma[i] || mb[i]
			inter[i] = ma[i] && mb[i]
			sub[i] = ma[i] && !mb[i]
		}
		union.check(t, "Union", a.Union(b))
		inter.check(t, "Intersect", a.Intersect(b))
		sub.check(t, "Subtract", a.Subtract(b))
		if len(clip) > 0 {
			for i := clip[0].Off; i < clip[0].End(); i++ {
				clipped[i] = ma[i]
			}
			clipped.check(t, "Clip", a.Clip(clip[0]))
			all := true
			for i := clip[0].Off; i < clip[0].End(); i++ {
				all = all && ma[i]
			}
			if a.Covers(clip[0]) != all {
				t.Fatalf("Covers(%v) = %v, want %v", clip[0], !all, all)
			}
		}
		ma.check(t, "operand afterwards", a)
	})
}

func TestAlignGrowsToWholeBlocksWithinTheLimit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, ma := drawSet(t, "a")
		block := rapid.Int64Range(1, 64).Draw(t, "block")
		var want model
		for i := range ma {
			if ma[i] {
				start := int64(i) / block * block
				want.add(extent.Extent{Off: start, Len: min(block, diskSize-start)})
			}
		}
		want.check(t, "Align", a.Align(block, diskSize))
	})
}

func TestBitmapsBecomeExtents(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		words := rapid.SliceOfN(rapid.OneOf(rapid.Uint64(), rapid.Just(uint64(0)), rapid.Just(uint64(math.MaxUint64))), 0, 8).Draw(t, "words")
		var b extent.Builder
		b.AddBits(words, 1000, 10)
		s := b.Set()
		for i := range int64(len(words) * 64) {
			want := words[i/64]>>(i%64)&1 == 1
			if s.Contains(1000+i*10) != want || s.Contains(1000+i*10+9) != want {
				t.Fatalf("bit %d: in the set %v, want %v", i, !want, want)
			}
		}
	})
}

func TestShiftMovesASliceToItsOwnOrigin(t *testing.T) {
	disk := extent.NewSet(extent.Extent{Off: 0, Len: 10}, extent.Extent{Off: 95, Len: 10}, extent.Extent{Off: 150, Len: 100})
	part := extent.Extent{Off: 100, Len: 100}
	got := disk.Clip(part).Shift(-part.Off)
	want := extent.NewSet(extent.Extent{Off: 0, Len: 5}, extent.Extent{Off: 50, Len: 50})
	if !got.Equal(want) {
		t.Fatalf("got %v, want %v", got.Extents(), want.Extents())
	}
}

func TestValidRefusesWhatCannotExist(t *testing.T) {
	for _, e := range []extent.Extent{{Off: -1, Len: 1}, {Off: 0, Len: -1}, {Off: math.MaxInt64, Len: 1}} {
		if e.Valid() {
			t.Errorf("%v counts as valid", e)
		}
	}
	if !(extent.Extent{Off: math.MaxInt64 - 1, Len: 1}).Valid() {
		t.Error("the last possible byte counts as invalid")
	}
}
