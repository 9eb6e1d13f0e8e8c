package era

import (
	"fmt"

	"tidemark/format/pdata"
)

// survey reads everything once to learn what cannot be read or believed: d.lost
// and the faults given to d.o.Damaged.
func (d *dump) survey() error {
	s := surveyor{dump: d, n: uint64(d.view.super.NrBlocks), seen: pdata.NewBitmap(d.view.dev.Blocks)}
	list, err := d.view.writesets(s.seen, s.loseEras)
	if err != nil {
		return err
	}
	d.setWritesets(list)
	if n := len(list); n > 0 {
		d.era = max(d.era, list[n-1].Era)
	}
	s.rule.era = d.era
	if err := s.readWritesets(); err != nil {
		return err
	}
	if err := s.readArray(); err != nil {
		return err
	}
	d.lost = s.lost.merged()
	return nil
}

// surveyor collects what is wrong with one view.
type surveyor struct {
	dump *dump
	n    uint64 // data blocks
	seen pdata.Bitmap
	lost runsList
	rule eraRule
}

// loseEras notes that whole writesets are unknown: any block may be in them.
func (s *surveyor) loseEras(_ pdata.Span, f *Fault) error {
	s.lost.add(0, s.n)
	s.dump.o.Damaged(f)
	return nil
}

func (s *surveyor) lose(at pdata.Span, per uint64, f *Fault) error {
	s.lost.add(at.Lo*per, min(at.Hi*per, s.n))
	s.dump.o.Damaged(f)
	return nil
}

func (s *surveyor) readWritesets() error {
	a := s.dump.bits
	a.Seen = s.seen
	a.Block = s.keepBits
	for _, w := range s.dump.writesets {
		a.Lost = func(at pdata.Span, f *Fault) error {
			f.Object = fmt.Sprintf("%s of era %d", f.Object, w.Era)
			s.rule.open.Fill(at.Lo*bitsPerBlock, min(at.Hi*bitsPerBlock, uint64(len(s.rule.open))*64))
			return s.lose(at, bitsPerBlock, f)
		}
		s.rule.begin(w.Era, w.Bits)
		if w.Era > s.dump.view.super.Era {
			s.dump.o.Damaged(damage(w.Root, "writeset", "era %d is above the current era %d", w.Era, s.dump.view.super.Era))
		}
		if err := a.Read(w.Root, uint64(w.Bits), pdata.AllKeys()); err != nil {
			return err
		}
	}
	return nil
}

func (s *surveyor) keepBits(index uint64, values []byte) error {
	if s.rule.open == nil {
		return nil
	}
	out := s.rule.open[index*wordsPerBlock:]
	for i := range len(values) / wordWidth {
		out[i] = le.Uint64(values[i*wordWidth:])
	}
	return nil
}

func (s *surveyor) readArray() error {
	a := s.dump.eras
	a.Seen = s.seen
	a.Lost = func(at pdata.Span, f *Fault) error { return s.lose(at, erasPerBlock, f) }
	a.Block = s.checkEras
	return a.Read(s.dump.view.super.EraArray, s.n, pdata.AllKeys())
}

// checkEras looks for eras that the array cannot have.
func (s *surveyor) checkEras(index uint64, values []byte) error {
	bad, first := 0, 0
	for i := range len(values) / eraWidth {
		b := index*erasPerBlock + uint64(i)
		if s.rule.allows(b, Era(le.Uint32(values[i*eraWidth:]))) {
			continue
		}
		if bad == 0 {
			first = i
		}
		bad++
		s.lost.add(b, b+1)
	}
	if bad == 0 {
		return nil
	}
	f := damage(s.dump.view.super.EraArray, "era array", "%d impossible eras in block %d of the array: data block %d has era %d, the newest possible is %d",
		bad, index, index*erasPerBlock+uint64(first), le.Uint32(values[first*eraWidth:]), s.rule.newest())
	s.dump.o.Damaged(f)
	return nil
}
