package vault

import (
	"math/bits"

	format "tidemark/format/vault"
)

// refSet is a set of segments: a bit for each number, by pack.
type refSet map[format.ID][]uint64

// add reports whether the segment is new to the set. Its number is below format.MaxSegments.
func (s refSet) add(ref format.Ref) bool {
	words := s[ref.Pack]
	for int(ref.Segment/64) >= len(words) {
		words = append(words, 0)
	}
	s[ref.Pack] = words
	bit := uint64(1) << (ref.Segment % 64)
	isNew := words[ref.Segment/64]&bit == 0
	words[ref.Segment/64] |= bit
	return isNew
}

func (s refSet) has(ref format.Ref) bool {
	words := s[ref.Pack]
	return int(ref.Segment/64) < len(words) && words[ref.Segment/64]&(1<<(ref.Segment%64)) != 0
}

// within reports whether all segments of a pack that are in the set are in its table.
func (s refSet) within(pack format.ID, t *table) bool {
	there := 0
	for _, segment := range t.Segments {
		if s.has(format.Ref{Pack: pack, Segment: segment.Number}) {
			there++
		}
	}
	want := 0
	for _, word := range s[pack] {
		want += bits.OnesCount64(word)
	}
	return there == want
}
