package vault

import (
	"slices"

	"tidemark/extent"
	format "tidemark/format/vault"
)

// run is bytes of several places that become one segment. The zero value has none.
type run struct {
	bytes   []byte
	coded   []byte         // room for what becomes of them
	entries []format.Entry // the places; Ref is not known yet
}

// fits reports whether n bytes more have room.
func (r *run) fits(n int64) bool { return int64(len(r.bytes))+n <= runSize }

// overlaps reports whether any byte of e is one of the places.
func (r *run) overlaps(e extent.Extent) bool {
	return slices.ContainsFunc(r.entries, func(p format.Entry) bool { return !e.Intersect(extent.Extent{Off: p.Off, Len: p.Len}).Empty() })
}

// add adds a place whose bytes have room, and returns where its bytes belong.
func (r *run) add(e extent.Extent) []byte {
	if r.bytes == nil {
		r.bytes, r.coded = make([]byte, 0, runSize), make([]byte, 0, runSize+runSize/64)
	}
	at := int64(len(r.bytes))
	r.bytes = r.bytes[:at+e.Len]
	r.entries = append(r.entries, format.Entry{Off: e.Off, Len: e.Len, At: at})
	return r.bytes[at:]
}

// end stores the bytes and empties the run. It returns the places, none where the run was empty.
func (r *run) end(packs *packer) ([]format.Entry, error) {
	if len(r.bytes) == 0 {
		return nil, nil
	}
	ref, err := packs.add(format.Run, r.bytes, r.coded, format.Hash{})
	if err != nil {
		return nil, err
	}
	entries := r.entries
	for i := range entries {
		entries[i].Ref = ref
	}
	r.bytes, r.entries = r.bytes[:0], nil
	return entries, nil
}
