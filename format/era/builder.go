package era

import (
	"fmt"
	"io"
	"slices"

	"tidemark/format/pdata"
)

// Builder is a Sink that writes new metadata: array blocks and trees in the
// order they come, then the space map, the superblock last.
//
// What it writes is the layout of era_restore: no reference is shared, every
// block from 0 on is in use once, up to the last that is needed.
type Builder struct {
	out *pdata.Writer
	h   Header

	identity  Identity
	array     pdata.ArrayWriter
	given     uint64 // bits or eras of the array
	current   int    // the writeset that it belongs to
	writesets []Writeset
	rule      eraRule
	eraArray  Addr
}

// NewBuilder returns a Builder for the first size bytes of w. Nothing is
// written before Begin.
func NewBuilder(w io.WriterAt, size int64) *Builder {
	return &Builder{out: pdata.NewWriter(w, size, "era: restore")}
}

// Begin checks the header and zeroes the superblock of the target: from here on
// until End has written the new one there is no metadata.
func (b *Builder) Begin(h Header) error {
	b.h, b.rule.era = h, h.Era
	s := Superblock{BlockSectors: h.BlockSectors, NrBlocks: h.NrBlocks}
	if len(h.UUID) > len(s.UUID) {
		return fmt.Errorf("era: restore: uuid of %d bytes, the limit is %d: %w", len(h.UUID), len(s.UUID), ErrXML)
	}
	if err := checkSuper(0, s.encode(0), s); err != nil {
		return fmt.Errorf("era: restore: %s: %w", pdata.AsFault(err).Problem, ErrXML)
	}
	if err := b.out.Fits(pdata.CeilDiv(uint64(h.NrBlocks), erasPerBlock) + 4); err != nil {
		return err
	}
	return b.out.Zero()
}

// BeginWriteset begins the writeset of an era, in any order of eras.
func (b *Builder) BeginWriteset(e Era, bits uint32) error {
	if e > b.h.Era {
		return fmt.Errorf("era: restore: writeset of era %d, the current era is %d: %w", e, b.h.Era, ErrXML)
	}
	if bits >= maxNrBlocks {
		return fmt.Errorf("era: restore: writeset of %d bits, the limit is %d: %w", bits, maxNrBlocks-1, ErrXML)
	}
	at, found := slices.BinarySearchFunc(b.writesets, e, func(w Writeset, e Era) int { return int(w.Era) - int(e) })
	if found {
		return fmt.Errorf("era: restore: two writesets of era %d: %w", e, ErrXML)
	}
	if err := b.out.Fits(pdata.CeilDiv(uint64(bits), bitsPerBlock) + 1); err != nil {
		return err
	}
	b.writesets = slices.Insert(b.writesets, at, Writeset{Era: e, Bits: bits})
	b.array, b.given, b.current = b.out.Array(wordWidth), 0, at
	b.rule.begin(e, bits)
	return nil
}

// Bits adds bits to the open writeset.
func (b *Builder) Bits(words []uint64, n int) error {
	if b.given+uint64(n) <= uint64(len(b.rule.open))*64 {
		copy(b.rule.open[b.given/64:], words)
	}
	for i := range words {
		p, err := b.array.Slot()
		if err != nil {
			return err
		}
		le.PutUint64(p, words[i])
	}
	b.given += uint64(n)
	return nil
}

// EndWriteset writes the tree of the open writeset.
func (b *Builder) EndWriteset() error {
	w := &b.writesets[b.current]
	if b.given != uint64(w.Bits) {
		return fmt.Errorf("era: restore: writeset of era %d has %d bits, want %d: %w", w.Era, b.given, w.Bits, ErrXML)
	}
	var err error
	w.Root, err = b.array.Root()
	return err
}

// BeginArray begins the era array.
func (b *Builder) BeginArray() error {
	b.array, b.given = b.out.Array(eraWidth), 0
	return nil
}

// Eras adds eras to the array. It refuses an era that the array cannot have
// reached yet, for the kernel would put an older one over it.
func (b *Builder) Eras(eras []Era) error {
	for _, e := range eras {
		if !b.rule.allows(b.given, e) {
			return fmt.Errorf("era: restore: block %d has era %d, but what is not digested yet begins at era %d: %w", b.given, e, b.rule.newest(), ErrXML)
		}
		p, err := b.array.Slot()
		if err != nil {
			return err
		}
		le.PutUint32(p, uint32(e))
		b.given++
	}
	return nil
}

// EndArray writes the tree of the era array.
func (b *Builder) EndArray() error {
	if b.given != uint64(b.h.NrBlocks) {
		return fmt.Errorf("era: restore: era array of %d blocks, want %d: %w", b.given, b.h.NrBlocks, ErrXML)
	}
	var err error
	b.eraArray, err = b.array.Root()
	return err
}

// End writes the writeset tree, the space map and the superblock. The blocks
// are synced before the superblock that makes them metadata is written.
func (b *Builder) End() error {
	s := Superblock{BlockSectors: b.h.BlockSectors, NrBlocks: b.h.NrBlocks, Era: b.h.Era, EraArray: b.eraArray, Identity: b.identity}
	copy(s.UUID[:], b.h.UUID)
	var err error
	s.WritesetTree, err = b.out.Tree(writesetWidth, len(b.writesets), func(i int, value []byte) uint64 {
		w := b.writesets[i]
		le.PutUint32(value, w.Bits)
		le.PutUint64(value[4:], uint64(w.Root))
		return uint64(w.Era)
	})
	if err != nil {
		return err
	}
	if s.SpaceMap, err = b.out.SpaceMap(); err != nil {
		return err
	}
	return b.out.WriteSuper(s.encode(0))
}
