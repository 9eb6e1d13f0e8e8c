package era

import (
	"fmt"
	"io"
	"slices"
)

// Builder is a Sink that writes new metadata: array blocks and trees in the
// order they come, then the space map, the superblock last.
//
// What it writes is the layout of era_restore: no reference is shared, every
// block from 0 on is in use once, up to the last that is needed.
type Builder struct {
	w      io.WriterAt
	blocks uint64 // of the target
	next   Addr   // first block not handed out
	run    []byte // blocks handed out and not yet written, the last next-1
	h      Header

	identity  Identity
	array     arrayWriter
	writesets []Writeset
	rule      eraRule
	eraArray  Addr
}

// NewBuilder returns a Builder for the first size bytes of w. Nothing is
// written before Begin.
func NewBuilder(w io.WriterAt, size int64) *Builder {
	blocks := min(uint64(max(size, 0))/BlockSize, MaxMetadataBlocks)
	return &Builder{w: w, blocks: blocks, next: 1, run: make([]byte, 0, runBlocks*BlockSize)}
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
		return fmt.Errorf("era: restore: %s: %w", asFault(err).Problem, ErrXML)
	}
	if err := b.fits(ceilDiv(uint64(h.NrBlocks), erasPerBlock) + 4); err != nil {
		return err
	}
	_, err := b.w.WriteAt(make([]byte, BlockSize), 0)
	return err
}

// fits fails early when n more blocks cannot fit.
func (b *Builder) fits(n uint64) error {
	if need := uint64(b.next) + n; need > b.blocks {
		return fmt.Errorf("era: restore: needs %d blocks or more, the target has %d: %w", need, b.blocks, ErrNoSpace)
	}
	return nil
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
	if err := b.fits(ceilDiv(uint64(bits), bitsPerBlock) + 1); err != nil {
		return err
	}
	b.writesets = slices.Insert(b.writesets, at, Writeset{Era: e, Bits: bits})
	b.array = arrayWriter{b: b, width: wordWidth, current: at}
	b.rule.begin(e, bits)
	return nil
}

// Bits adds bits to the open writeset.
func (b *Builder) Bits(words []uint64, n int) error {
	if b.array.given+uint64(n) <= uint64(len(b.rule.open))*64 {
		copy(b.rule.open[b.array.given/64:], words)
	}
	for i := range words {
		p, err := b.array.slot()
		if err != nil {
			return err
		}
		le.PutUint64(p, words[i])
	}
	b.array.given += uint64(n)
	return nil
}

// EndWriteset writes the tree of the open writeset.
func (b *Builder) EndWriteset() error {
	w := &b.writesets[b.array.current]
	if b.array.given != uint64(w.Bits) {
		return fmt.Errorf("era: restore: writeset of era %d has %d bits, want %d: %w", w.Era, b.array.given, w.Bits, ErrXML)
	}
	var err error
	w.Root, err = b.array.root()
	return err
}

// BeginArray begins the era array.
func (b *Builder) BeginArray() error {
	b.array = arrayWriter{b: b, width: eraWidth}
	return nil
}

// Eras adds eras to the array. It refuses an era that the array cannot have
// reached yet, for the kernel would put an older one over it.
func (b *Builder) Eras(eras []Era) error {
	for _, e := range eras {
		if !b.rule.allows(b.array.given, e) {
			return fmt.Errorf("era: restore: block %d has era %d, but what is not digested yet begins at era %d: %w", b.array.given, e, b.rule.newest(), ErrXML)
		}
		p, err := b.array.slot()
		if err != nil {
			return err
		}
		le.PutUint32(p, uint32(e))
		b.array.given++
	}
	return nil
}

// EndArray writes the tree of the era array.
func (b *Builder) EndArray() error {
	if b.array.given != uint64(b.h.NrBlocks) {
		return fmt.Errorf("era: restore: era array of %d blocks, want %d: %w", b.array.given, b.h.NrBlocks, ErrXML)
	}
	var err error
	b.eraArray, err = b.array.root()
	return err
}

// End writes the writeset tree, the space map and the superblock. The blocks
// are synced before the superblock that makes them metadata is written.
func (b *Builder) End() error {
	s := Superblock{BlockSectors: b.h.BlockSectors, NrBlocks: b.h.NrBlocks, Era: b.h.Era, EraArray: b.eraArray, Identity: b.identity}
	copy(s.UUID[:], b.h.UUID)
	var err error
	s.WritesetTree, err = b.tree(writesetWidth, len(b.writesets), func(i int, value []byte) uint64 {
		w := b.writesets[i]
		le.PutUint32(value, w.Bits)
		le.PutUint64(value[4:], uint64(w.Root))
		return uint64(w.Era)
	})
	if err != nil {
		return err
	}
	if s.SpaceMap, err = b.spaceMap(); err != nil {
		return err
	}
	if err := b.flush(); err != nil {
		return err
	}
	if err := b.sync(); err != nil {
		return err
	}
	if _, err := b.w.WriteAt(s.encode(0), 0); err != nil {
		return err
	}
	return b.sync()
}

func (b *Builder) sync() error {
	if s, ok := b.w.(interface{ Sync() error }); ok {
		return s.Sync()
	}
	return nil
}

// alloc returns the next block, zeroed. It must be filled and sealed before the
// next call.
func (b *Builder) alloc() (Addr, []byte, error) {
	if err := b.fits(1); err != nil {
		return 0, nil, err
	}
	if len(b.run) == cap(b.run) {
		if err := b.flush(); err != nil {
			return 0, nil, err
		}
	}
	at := len(b.run)
	b.run = b.run[:at+BlockSize]
	clear(b.run[at:])
	b.next++
	return b.next - 1, b.run[at:], nil
}

func (b *Builder) flush() error {
	if len(b.run) == 0 {
		return nil
	}
	from := b.next - Addr(len(b.run)/BlockSize)
	_, err := b.w.WriteAt(b.run, from.Offset())
	b.run = b.run[:0]
	return err
}
