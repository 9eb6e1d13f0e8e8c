package vault

import (
	"math/rand/v2"
	"testing"

	format "tidemark/format/vault"
)

// A page that refers to too many segments gives up those that it has least of, and no others.
func TestSparsestSegmentsAreGivenUp(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var page format.Leaf
	for i := range int64(entriesMost) {
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
	left := sparsest(page)
	most, least := int64(0), int64(runSize)
	for ref, n := range all {
		if left[ref] {
			gone, most = gone+n, max(most, n)
		} else {
			least = min(least, n)
		}
	}
	if now := int64(len(all)-len(left)) + (gone+runSize-1)/runSize; len(all) <= scattered || now > gathered {
		t.Errorf("%d segments, and %d then", len(all), now)
	}
	if most > least {
		t.Errorf("one with %d bytes was given up, and one with %d kept", most, least)
	}
	if few := sparsest(page[:scattered]); few != nil {
		t.Errorf("%d given up of at most %d", len(few), scattered)
	}
}
