package vault

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"tidemark/extent"
	format "tidemark/format/vault"
)

// A page that refers to too many segments gives up those that it has least of, and no others.
func TestSparsestSegmentsAreGivenUp(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var page format.Leaf
	for i := range int64(mayScatter.entries) {
		segment := uint32(1 + i/16)
		if rng.IntN(2) == 0 {
			segment = uint32(1000 + rng.IntN(500))
		}
		page = append(page, format.Entry{Off: i * blockSize, Len: blockSize, Ref: format.Ref{Pack: format.ID{1}, Segment: segment}})
	}
	all, gone := map[format.Ref]int64{}, int64(0)
	for _, e := range page {
		all[e.Ref] += e.Len
	}
	left := mayScatter.sparsest(page)
	most, least := int64(0), int64(runSize)
	for ref, n := range all {
		if left[ref] {
			gone, most = gone+n, max(most, n)
		} else {
			least = min(least, n)
		}
	}
	if now := int64(len(all)-len(left)) + (gone+runSize-1)/runSize; int64(len(all)) <= mayScatter.segments || now > mayScatter.gathered {
		t.Errorf("%d segments, and %d then", len(all), now)
	}
	if most > least {
		t.Errorf("one with %d bytes was given up, and one with %d kept", most, least)
	}
	if few := mayScatter.sparsest(page[:mayScatter.segments]); few != nil {
		t.Errorf("%d given up of at most %d", len(few), mayScatter.segments)
	}
}

// Points of a disk of which blocks change at random are what it was, though what lies scattered is
// stored anew again and again; and no page refers to more than it may.
func TestPointsOfScatteredBlocksAreGathered(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	s, _ := folder(t)
	v := open(t, s, Options{})
	const size, points = 2 << 20, 60
	disk := noise(1, size)
	p := point(t, v, From{Size: size}, map[int64][]byte{0: disk})
	given := 0
	for i := range points {
		var changed []extent.Extent
		for range 8 {
			off := rng.Int64N(size/blockSize) * blockSize
			copy(disk[off:off+blockSize], noise(byte(rng.Uint32()), blockSize))
			changed = append(changed, extent.Extent{Off: off, Len: blockSize})
		}
		w, err := v.Begin(t.Context(), From{Disk: format.ID{9}, Size: size, Base: &p})
		if err != nil {
			t.Fatal(err)
		}
		w.may = scatter{segments: 48, gathered: 40, entries: size / blockSize}
		err = w.Copy(bytes.NewReader(disk), extent.NewSet(changed...))
		if err == nil {
			p, err = w.Commit(format.Point{Moment: time.Now()})
		}
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		l, err := v.treeOf(p.Point).leafAt(t.Context(), 0)
		refs := map[format.Ref]bool{}
		for _, e := range l {
			refs[e.Ref] = true
		}
		if err != nil || int64(len(refs)) > w.may.segments {
			t.Fatalf("point %d: %d segments, %v", i, len(refs), err)
		}
		if int64(len(refs)) == w.may.gathered {
			given++
		}
		if got := at(t, v, p, 0, size); !bytes.Equal(got, disk) {
			t.Fatalf("point %d has other bytes", i)
		}
	}
	if given < 3 {
		t.Errorf("gathered %d times in %d points", given, points)
	}
}
