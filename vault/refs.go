package vault

import format "tidemark/format/vault"

// refSet is a set of segments: a bit for each number, by pack.
type refSet map[format.ID][]uint64

// add reports whether the segment is new to the set. Its number is below format.MaxSegments.
func (s refSet) add(ref format.Ref) bool {
	bits := s[ref.Pack]
	for int(ref.Segment/64) >= len(bits) {
		bits = append(bits, 0)
	}
	s[ref.Pack] = bits
	bit := uint64(1) << (ref.Segment % 64)
	isNew := bits[ref.Segment/64]&bit == 0
	bits[ref.Segment/64] |= bit
	return isNew
}

func (s refSet) has(ref format.Ref) bool {
	bits := s[ref.Pack]
	return int(ref.Segment/64) < len(bits) && bits[ref.Segment/64]&(1<<(ref.Segment%64)) != 0
}
