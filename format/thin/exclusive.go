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
		err := v.Mappings(d.Root, func(m Mapping) error {
			for b := m.Data; b < m.Data+m.Len; b++ {
				if uses.get(b) == 1 {
					out[d.ID]++
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// pages counts uses of data blocks, up to two, in pages that are made when they are needed.
type pages map[uint64]*[pageBlocks]uint8

const pageBlocks = 1 << 16

func (p *pages) add(v *View, m Mapping) error {
	if end := m.Data + m.Len; end > v.super.Data.Blocks {
		return ours.Damage(min(v.super.Mappings, pdata.MaxMetadataBlocks), "mapping tree", "block %d is mapped to data block %d, and the pool has %d", m.Begin, m.Data, v.super.Data.Blocks)
	}
	if *p == nil {
		*p = pages{}
	}
	for b := m.Data; b < m.Data+m.Len; b++ {
		page := (*p)[b/pageBlocks]
		if page == nil {
			page = new([pageBlocks]uint8)
			(*p)[b/pageBlocks] = page
		}
		if n := &page[b%pageBlocks]; *n < 2 {
			*n++
		}
	}
	return nil
}

func (p pages) get(b uint64) uint8 { return p[b/pageBlocks][b%pageBlocks] }
