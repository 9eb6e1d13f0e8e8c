package vault

import (
	"bytes"
	"cmp"
	"slices"

	"tidemark/extent"
	format "tidemark/format/vault"
)

// rechunk writes those chunks of a leaf page anew that have more than one entry.
func (w *Writer) rechunk(page format.Leaf, off int64) (format.Leaf, error) {
	in := make([]int, format.LeafSize/format.ChunkSize)
	for _, e := range page {
		for i := e.Off / format.ChunkSize; i <= (e.Off+e.Len-1)/format.ChunkSize; i++ {
			in[i]++
		}
	}
	var now edits
	buf, scratch := make([]byte, format.ChunkSize), make([]byte, 0, format.ChunkSize)
	for i, entries := range in {
		at := int64(i) * format.ChunkSize
		b := buf[:max(0, min(format.ChunkSize, w.from.Size-off-at))]
		if entries < 2 || len(b) == 0 {
			continue
		}
		if err := fill(page, b, at, w.packs.copy); err != nil {
			return nil, err
		}
		ref, err := w.chunk(b, scratch)
		if err != nil {
			return nil, err
		}
		now = append(now, format.Entry{Off: at, Len: int64(len(b)), Ref: ref})
	}
	return now.over(page), nil
}

// gather writes anew, as runs, what a leaf page has in the segments that it has least of, when it
// refers to too many: a segment is read, and kept, as a whole for the last block that is needed of it.
func (w *Writer) gather(page format.Leaf) (format.Leaf, error) {
	left := w.may.sparsest(page)
	if len(left) == 0 {
		return page, nil
	}
	var now edits
	var r run
	end := func() error {
		entries, err := r.end(w.packs)
		now = append(now, entries...)
		return err
	}
	for _, e := range page {
		if !left[e.Ref] {
			continue
		}
		if !r.fits(e.Len) { // of what is given up no entry is as long as a run
			if err := end(); err != nil {
				return nil, err
			}
		}
		if err := w.packs.copy(e.Ref, e.At, r.add(extent.Extent{Off: e.Off, Len: e.Len})); err != nil {
			return nil, err
		}
	}
	if err := end(); err != nil {
		return nil, err
	}
	return now.over(page), nil
}

// sparsest returns the segments that a page should no longer refer to; none where it may have all.
func (s scatter) sparsest(page format.Leaf) map[format.Ref]bool {
	has := map[format.Ref]int64{} // bytes of the page
	for _, e := range page {
		has[e.Ref] += e.Len
	}
	if int64(len(has)) <= s.segments {
		return nil
	}
	type part struct {
		ref   format.Ref
		bytes int64
	}
	parts := make([]part, 0, len(has))
	for ref, n := range has {
		parts = append(parts, part{ref, n})
	}
	slices.SortFunc(parts, func(a, b part) int { // the same in each run, for tests
		return cmp.Or(cmp.Compare(a.bytes, b.bytes), bytes.Compare(a.ref.Pack[:], b.ref.Pack[:]), cmp.Compare(a.ref.Segment, b.ref.Segment))
	})
	left, moved := map[format.Ref]bool{}, int64(0)
	for _, p := range parts {
		if p.bytes >= runSize || int64(len(parts)-len(left))+(moved+runSize-1)/runSize <= s.gathered {
			break
		}
		left[p.ref] = true
		moved += p.bytes
	}
	return left
}
