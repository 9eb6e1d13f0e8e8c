package extent

import "math/bits"

// AddBits adds one extent of block bytes for every bit set in words, of which
// bit 0 of words[0] stands for the block at offset base. Runs of set bits become
// one extent. It serves bitmaps that arrive piece by piece: base must not lie
// before what was added last.
func (b *Builder) AddBits(words []uint64, base, block int64) {
	for i, w := range words {
		at := base + int64(i)*64*block
		for w != 0 {
			first := bits.TrailingZeros64(w)
			run := bits.TrailingZeros64(^(w >> first))
			b.Add(Extent{Off: at + int64(first)*block, Len: int64(run) * block})
			if first+run == 64 {
				break
			}
			w &^= (1<<run - 1) << first
		}
	}
}
