package era

import (
	"bytes"
	"fmt"

	"tidemark/format/pdata"
)

// DumpOptions chooses what Dump tells of the metadata. The zero value tells all
// and fails at the first fault.
type DumpOptions struct {
	// Logical merges the writesets into the era array: the newest era of
	// each block, and no writesets.
	Logical bool
	// Damaged, when set, gets each fault, and Dump goes on. Blocks whose
	// history a fault hides count as written in the current era: their
	// element of the era array is the current era, and so is their bit in
	// the current era's writeset, which is added when there is none. No
	// change is lost, and only the blocks concerned are copied again.
	Damaged func(*Fault)
	// Archived leaves out the current writeset, as era_dump 0.9 does. It
	// loses the last changes of a device that was not closed properly.
	Archived bool
}

// Dump gives the content of the view to sink.
func (v *View) Dump(sink Sink, o DumpOptions) error {
	d, err := newDump(v, o)
	if err != nil {
		return err
	}
	h := v.super.header()
	h.Era = d.era
	if err := sink.Begin(h); err != nil {
		return err
	}
	if !o.Logical {
		if err := d.dumpWritesets(sink); err != nil {
			return err
		}
	}
	if err := d.dumpArray(sink); err != nil {
		return err
	}
	return sink.End()
}

func (s Superblock) header() Header {
	id, _, _ := bytes.Cut(s.UUID[:], []byte{0})
	return Header{UUID: string(id), BlockSectors: s.BlockSectors, NrBlocks: s.NrBlocks, Era: s.Era}
}

// dump is one dump on its way. Reading goes in two passes when faults are
// tolerated: a survey finds what is lost, which must be known before the
// writesets are written.
type dump struct {
	view      *View
	o         DumpOptions
	writesets []Writeset
	era       Era     // the current one, or that of a newer writeset in damaged metadata
	lost      []Range // blocks with unknown history, ascending, disjoint

	eras *pdata.Array
	bits *pdata.Array
}

func newDump(v *View, o DumpOptions) (*dump, error) {
	d := &dump{view: v, o: o, era: v.super.Era}
	d.eras = pdata.NewArray(&v.dev, "era array", eraWidth, nil)
	d.bits = pdata.NewArray(&v.dev, "writeset", wordWidth, nil)
	if o.Damaged != nil {
		err := d.survey()
		d.eras.Seen, d.bits.Seen = nil, nil // what was seen is read once more
		return d, err
	}
	seen := pdata.NewBitmap(v.dev.Blocks)
	d.eras.Seen, d.bits.Seen = seen, seen
	list, err := v.writesets(seen, nil)
	d.setWritesets(list)
	return d, err
}

func (d *dump) setWritesets(list []Writeset) {
	d.writesets = list
	if n := len(list); d.o.Archived && n > 0 && list[n-1].Current {
		d.writesets = list[:n-1]
	}
}

func (d *dump) dumpWritesets(sink Sink) error {
	pending := len(d.lost) > 0
	for _, w := range d.writesets {
		extra := pending && w.Era == d.era
		pending = pending && !extra
		if err := d.dumpWriteset(sink, w, extra); err != nil {
			return fmt.Errorf("era: writeset of era %d: %w", w.Era, err)
		}
	}
	if !pending {
		return nil
	}
	return d.dumpWriteset(sink, Writeset{Era: d.era}, true)
}

// dumpWriteset gives one writeset to sink, with what is lost added to it.
func (d *dump) dumpWriteset(sink Sink, w Writeset, addLost bool) error {
	total := w.Bits
	if addLost {
		total = max(total, d.view.super.NrBlocks)
	}
	if err := sink.BeginWriteset(w.Era, total); err != nil {
		return err
	}
	p := bitPieces{sink: sink, total: uint64(total)}
	if addLost {
		p.lost = d.lost
	}
	d.bits.Block = func(_ uint64, values []byte) error {
		for i := range p.words[:len(values)/wordWidth] {
			p.words[i] = le.Uint64(values[i*wordWidth:])
		}
		// The words past the last bit of a writeset mean nothing.
		p.trim(uint64(w.Bits))
		return p.send()
	}
	if d.o.Damaged != nil {
		d.bits.Lost = func(at pdata.Span, _ *Fault) error { return p.sendTo(at.Hi * bitsPerBlock) }
	}
	if w.Bits > 0 {
		if err := d.bits.Read(w.Root, uint64(w.Bits), pdata.AllKeys()); err != nil {
			return err
		}
	}
	if err := p.sendTo(p.total); err != nil {
		return err
	}
	return sink.EndWriteset()
}

// bitPieces sends a writeset in pieces of one block of a bitset.
type bitPieces struct {
	sink  Sink
	total uint64
	lost  []Range
	at    uint64
	words [wordsPerBlock]uint64
}

// trim clears the bits of the piece from bit end of the writeset on.
func (p *bitPieces) trim(end uint64) {
	if end >= p.at+bitsPerBlock {
		return
	}
	i := (end - p.at) / 64
	p.words[i] &= 1<<((end-p.at)&63) - 1
	clear(p.words[i+1:])
}

// send sends one piece and clears it.
func (p *bitPieces) send() error {
	n := min(p.total-p.at, bitsPerBlock)
	for _, r := range p.lost {
		lo, hi := max(uint64(r.Begin), p.at), min(uint64(r.End), p.at+n)
		if lo < hi {
			pdata.Bitmap(p.words[:]).Fill(lo-p.at, hi-p.at)
		}
	}
	err := p.sink.Bits(p.words[:pdata.CeilDiv(n, 64)], int(n))
	clear(p.words[:])
	p.at += n
	return err
}

// sendTo sends pieces until bit end is reached.
func (p *bitPieces) sendTo(end uint64) error {
	for p.at < min(end, p.total) {
		if err := p.send(); err != nil {
			return err
		}
	}
	return nil
}
