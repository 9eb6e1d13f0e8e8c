package era

import (
	"fmt"
	"math/bits"

	"tidemark/format/pdata"
)

// windowBitsets is how many blocks of a bitset are merged at once: a window of
// 4,169,728 data blocks, 509 KiB of memory. It bounds memory for any number of
// blocks and of writesets.
const windowBitsets = 128

// Range is a half-open range of data blocks.
type Range struct {
	Begin Block `json:"begin"`
	End   Block `json:"end"`
}

// Bytes returns where the range lies on a device with blocks of blockBytes. The
// end is not clipped to the device, whose last block may be partial.
func (r Range) Bytes(blockBytes int64) (off, length int64) {
	return int64(r.Begin) * blockBytes, int64(r.End-r.Begin) * blockBytes
}

// Query asks which blocks were written since an era.
type Query struct {
	// Since is the first era that counts.
	Since Era
	// Damaged, when set, gets each fault, and the blocks that a fault hides
	// count as written. When nil, the first fault ends the query.
	Damaged func(*Fault)
}

// Changed calls emit with all blocks written in era q.Since or later, ascending,
// disjoint, neighbours joined. On a live view that was not closed properly that
// includes the current writeset. Blocks by which a device grew are not included
// until they are written.
//
// When emit or the query fails, the ranges emitted so far are incomplete.
func (v *View) Changed(q Query, emit func(Range) error) error {
	s := newScan(v, q)
	if err := s.list(); err != nil {
		return err
	}
	n := uint64(v.super.NrBlocks)
	for lo := uint64(0); lo < n; lo += windowBitsets * bitsPerBlock {
		if err := s.window(lo, min(lo+windowBitsets*bitsPerBlock, n)); err != nil {
			return err
		}
		if err := s.runs.words(s.changed, lo, min(lo+windowBitsets*bitsPerBlock, n), emit); err != nil {
			return err
		}
	}
	return s.runs.end(n, emit)
}

// scan is one query on its way through the windows.
type scan struct {
	view      *View
	query     Query
	writesets []Writeset
	all       bool // a fault hides whole eras: any block may have changed
	skipArray bool // all that is digested is older than asked for

	seen    pdata.Bitmap
	changed pdata.Bitmap // of the window
	base    uint64       // first block of the window
	eras    *pdata.Array
	bits    *pdata.Array
	runs    runs
}

func newScan(v *View, q Query) *scan {
	n := min(uint64(v.super.NrBlocks), windowBitsets*bitsPerBlock)
	s := &scan{view: v, query: q, seen: pdata.NewBitmap(v.dev.Blocks), changed: pdata.NewBitmap(n)}
	s.eras = pdata.NewArray(&v.dev, "era array", eraWidth, s.seen)
	s.eras.Block = s.mergeEras
	s.bits = pdata.NewArray(&v.dev, "writeset", wordWidth, s.seen)
	s.bits.Block = s.mergeBits
	if q.Damaged != nil {
		s.eras.Lost = func(at pdata.Span, f *Fault) error { return s.lose(at, erasPerBlock, f) }
		s.bits.Lost = func(at pdata.Span, f *Fault) error { return s.lose(at, bitsPerBlock, f) }
	}
	return s
}

// list finds the writesets that count. The kernel digests the oldest era first,
// so nothing in the era array is newer than the oldest writeset.
func (s *scan) list() error {
	var lost func(pdata.Span, *Fault) error
	if s.query.Damaged != nil {
		lost = func(eras pdata.Span, f *Fault) error {
			s.all = s.all || eras.Hi > uint64(s.query.Since)
			s.query.Damaged(f)
			return nil
		}
	}
	list, err := s.view.writesets(s.seen, lost)
	if err != nil {
		return err
	}
	s.skipArray = s.all || len(list) > 0 && !list[0].Current && list[0].Era <= s.query.Since
	for len(list) > 0 && list[0].Era < s.query.Since {
		list = list[1:]
	}
	if !s.all {
		s.writesets = list
	}
	return nil
}

// window merges all that is known about the blocks [lo, hi).
func (s *scan) window(lo, hi uint64) error {
	s.base = lo
	clear(s.changed)
	if s.all {
		s.changed.Fill(0, hi-lo)
		return nil
	}
	for _, w := range s.writesets {
		n := min(uint64(w.Bits), hi)
		if n <= lo {
			continue
		}
		if err := s.bits.Read(w.Root, uint64(w.Bits), pdata.Span{Lo: lo / bitsPerBlock, Hi: pdata.CeilDiv(n, bitsPerBlock)}); err != nil {
			return fmt.Errorf("era: writeset of era %d: %w", w.Era, err)
		}
	}
	if s.skipArray {
		return nil
	}
	return s.eras.Read(s.view.super.EraArray, uint64(s.view.super.NrBlocks), pdata.Span{Lo: lo / erasPerBlock, Hi: pdata.CeilDiv(hi, erasPerBlock)})
}

func (s *scan) lose(index pdata.Span, per uint64, f *Fault) error {
	s.query.Damaged(f)
	limit := s.base + uint64(len(s.changed))*64
	s.changed.Fill(index.Lo*per-s.base, min(index.Hi*per, limit)-s.base)
	return nil
}

// mergeBits adds one block of a writeset.
func (s *scan) mergeBits(index uint64, values []byte) error {
	at := (index*bitsPerBlock - s.base) / 64
	out := s.changed[at:min(at+wordsPerBlock, uint64(len(s.changed)))]
	for i := range out {
		if len(values) < wordWidth {
			break
		}
		out[i] |= le.Uint64(values)
		values = values[wordWidth:]
	}
	return nil
}

// mergeEras adds the blocks of one era array block that are new enough. The
// comparison has no branch: eras of neighbours are often as good as random.
func (s *scan) mergeEras(index uint64, values []byte) error {
	limit := uint64(s.query.Since) - 1 // wraps for 0, which is right: all are newer
	pos := index*erasPerBlock - s.base
	word := uint64(0)
	for ; len(values) >= eraWidth; values = values[eraWidth:] {
		newer := (limit - uint64(le.Uint32(values))) >> 63
		word |= newer << (pos & 63)
		pos++
		if pos&63 == 0 {
			s.changed[pos/64-1] |= word
			word = 0
		}
	}
	if word != 0 {
		s.changed[pos/64] |= word
	}
	return nil
}

// runs turns windows of a bitmap into ranges.
type runs struct {
	open  bool
	begin uint64
}

// words emits the runs of set bits for the blocks [lo, hi); bit 0 is block lo.
// A run that reaches hi stays open.
func (r *runs) words(set pdata.Bitmap, lo, hi uint64, emit func(Range) error) error {
	for i := uint64(0); lo+i*64 < hi; i++ {
		for pos := uint64(0); ; {
			w := set[i] >> pos
			if r.open {
				w = ^w
			}
			pos += uint64(bits.TrailingZeros64(w))
			if pos >= 64 || lo+i*64+pos >= hi {
				break
			}
			if err := r.flip(lo+i*64+pos, emit); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *runs) flip(at uint64, emit func(Range) error) error {
	r.open = !r.open
	if r.open {
		r.begin = at
		return nil
	}
	return emit(Range{Block(r.begin), Block(at)})
}

// end emits the run that is still open at block at.
func (r *runs) end(at uint64, emit func(Range) error) error {
	if !r.open {
		return nil
	}
	return r.flip(at, emit)
}
