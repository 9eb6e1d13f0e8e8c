package thin

import "tidemark/format/pdata"

// Exclusive returns, for each of some devices, how many of its blocks have data that no other of
// them has. It reads all mappings, and takes a byte for each data block of the pool that is in
// use, up to the highest.
func (v *View) Exclusive(list []Device) (map[uint32]uint64, error) {
	var uses pages
	for _, d := range list {
		if err := v.Mappings(d.Root, func(m Mapping) error { return uses.add(v, m) }); err != nil {
			return nil, err
		}
	}
	out := map[uint32]uint64{}
	for _, d := range list {
		own := uint64(0)
		err := v.Mappings(d.Root, func(m Mapping) error {
			own += uses.once(m)
			return nil
		})
		out[d.ID] = own
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// pages counts uses of data blocks, up to two, in pages that are made when they are needed.
type pages []*[pageBlocks]uint8

const pageBlocks = 1 << 16

func (p *pages) add(v *View, m Mapping) error {
	if end := m.Data + m.Len; end > v.super.Data.Blocks {
		return ours.Damage(min(v.super.Mappings, pdata.MaxMetadataBlocks), "mapping tree", "block %d is mapped to data block %d, and the pool has %d", m.Begin, m.Data, v.super.Data.Blocks)
	}
	for b := m.Data; b < m.Data+m.Len; b++ {
		for uint64(len(*p)) <= b/pageBlocks {
			*p = append(*p, nil)
		}
		page := &(*p)[b/pageBlocks]
		if *page == nil {
			*page = new([pageBlocks]uint8)
		}
		if n := &(*page)[b%pageBlocks]; *n < 2 {
			*n++
		}
	}
	return nil
}

// once returns how many blocks of a run are used once.
func (p pages) once(m Mapping) (n uint64) {
	for b := m.Data; b < m.Data+m.Len; b++ {
		if p[b/pageBlocks][b%pageBlocks] == 1 {
			n++
		}
	}
	return n
}
