package era

import (
	"fmt"
	"math/bits"
	"slices"

	"tidemark/format/pdata"
)

// logicalBitsets is the window of dumpArray in blocks of a bitset: 260,608 data
// blocks, 1 MiB of eras.
const logicalBitsets = 8

// dumpArray gives the era array to sink, with the writesets merged in when the
// dump is logical.
func (d *dump) dumpArray(sink Sink) error {
	if err := sink.BeginArray(); err != nil {
		return err
	}
	n := uint64(d.view.super.NrBlocks)
	w := eraWindow{dump: d, eras: make([]Era, min(n, logicalBitsets*bitsPerBlock))}
	for lo := uint64(0); lo < n; lo += logicalBitsets * bitsPerBlock {
		eras, err := w.load(lo, min(lo+logicalBitsets*bitsPerBlock, n))
		if err != nil {
			return err
		}
		if err := sink.Eras(eras); err != nil {
			return err
		}
	}
	if n == 0 {
		if _, err := w.load(0, 0); err != nil {
			return err
		}
	}
	return sink.EndArray()
}

// eraWindow holds the eras of some neighbouring data blocks.
type eraWindow struct {
	dump *dump
	eras []Era
	base uint64
}

// load fills the window with the blocks [lo, hi).
func (w *eraWindow) load(lo, hi uint64) ([]Era, error) {
	d := w.dump
	w.base, w.eras = lo, w.eras[:hi-lo]
	d.eras.Block = w.setEras
	d.bits.Block = nil
	if d.o.Damaged != nil {
		ignore := func(pdata.Span, *Fault) error { return nil } // in d.lost already
		d.eras.Lost, d.bits.Lost = ignore, ignore
	}
	err := d.eras.Read(d.view.super.EraArray, uint64(d.view.super.NrBlocks), pdata.Span{Lo: lo / erasPerBlock, Hi: pdata.CeilDiv(hi, erasPerBlock)})
	if err != nil {
		return nil, err
	}
	if d.o.Logical {
		if err := w.mergeWritesets(lo, hi); err != nil {
			return nil, err
		}
	}
	for _, r := range d.lost {
		for b := max(uint64(r.Begin), lo); b < min(uint64(r.End), hi); b++ {
			w.eras[b-lo] = d.era
		}
	}
	return w.eras, nil
}

func (w *eraWindow) setEras(index uint64, values []byte) error {
	out := w.eras[index*erasPerBlock-w.base:]
	for i := range len(values) / eraWidth {
		out[i] = Era(le.Uint32(values[i*eraWidth:]))
	}
	return nil
}

// mergeWritesets raises the eras of blocks that a writeset names. It keeps the
// newest: era_dump 0.9 keeps the oldest, so that a restored dump misses changes.
func (w *eraWindow) mergeWritesets(lo, hi uint64) error {
	d := w.dump
	for _, ws := range d.writesets {
		n := min(uint64(ws.Bits), hi)
		if n <= lo {
			continue
		}
		d.bits.Block = func(index uint64, values []byte) error {
			w.raise(ws.Era, index*bitsPerBlock, n, values)
			return nil
		}
		at := pdata.Span{Lo: lo / bitsPerBlock, Hi: pdata.CeilDiv(n, bitsPerBlock)}
		if err := d.bits.Read(ws.Root, uint64(ws.Bits), at); err != nil {
			return fmt.Errorf("era: writeset of era %d: %w", ws.Era, err)
		}
	}
	return nil
}

// raise applies one block of a bitset that begins at data block at.
func (w *eraWindow) raise(e Era, at, end uint64, values []byte) {
	for ; len(values) >= wordWidth; values, at = values[wordWidth:], at+64 {
		for word := le.Uint64(values); word != 0; word &= word - 1 {
			b := at + uint64(bits.TrailingZeros64(word))
			if b >= end {
				return
			}
			w.eras[b-w.base] = max(w.eras[b-w.base], e)
		}
	}
}

// runsList collects ranges in any order.
type runsList []Range

func (l *runsList) add(lo, hi uint64) {
	if lo < hi {
		*l = append(*l, Range{Block(lo), Block(hi)})
	}
}

// merged returns the ranges ascending, disjoint, neighbours joined.
func (l runsList) merged() []Range {
	slices.SortFunc(l, func(a, b Range) int { return int(a.Begin) - int(b.Begin) })
	var out []Range
	for _, r := range l {
		if n := len(out); n > 0 && r.Begin <= out[n-1].End {
			out[n-1].End = max(out[n-1].End, r.End)
			continue
		}
		out = append(out, r)
	}
	return out
}
