package vault

import (
	"bytes"
	"slices"

	"tidemark/extent"
	format "tidemark/format/vault"
)

// comparesTried is how many chunks are compared with the base before it counts how many were worth it.
const comparesTried = 16

// differing returns the parts of a chunk that the base has not, where it has at least half of the
// chunk: of a disk that is scanned, or whose tracker is coarse, mostly little changed. Where that
// is seldom so, as when whole chunks were written, it stops asking: the store may be far.
func (w *Writer) differing(off int64, data []byte) (parts []extent.Extent, ok bool, err error) {
	if !w.worthComparing(extent.Extent{Off: off, Len: int64(len(data))}) {
		return nil, false, nil
	}
	w.tried.Add(1)
	leaf, err := w.base.leafAt(w.ctx, off)
	buf := w.pool.Get().(*scratch)
	defer w.pool.Put(buf)
	old := buf[:len(data)]
	if err == nil {
		err = fill(leaf, old, off%format.LeafSize, w.v.getter(w.ctx))
	}
	if err != nil {
		if ours(err) { // what the vault lost is stored anew
			err = nil
		}
		return nil, false, err
	}
	same := 0
	var b extent.Builder
	for at := 0; at < len(data); at += blockSize {
		end := min(at+blockSize, len(data))
		if bytes.Equal(old[at:end], data[at:end]) {
			same += end - at
		} else {
			b.Add(extent.Extent{Off: off + int64(at), Len: int64(end - at)})
		}
	}
	if same < len(data)/2 {
		return nil, false, nil
	}
	w.helped.Add(1)
	return b.Set().Extents(), true, nil
}

// worthComparing reports whether the point has in e what the base has there, as yet, and comparing
// has been of use.
func (w *Writer) worthComparing(e extent.Extent) bool {
	tried := w.tried.Load()
	if w.base.root.IsZero() || e.Off >= w.base.size || tried >= comparesTried && w.helped.Load() < tried/4 {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	leaf := e.Off / format.LeafSize
	_, written := w.pages[0][leaf]
	return !written && !w.run.overlaps(e) && !slices.ContainsFunc(w.edits[leaf], func(have format.Entry) bool {
		return !extent.Extent{Off: leaf*format.LeafSize + have.Off, Len: have.Len}.Intersect(e).Empty()
	})
}
