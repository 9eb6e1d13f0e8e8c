package era

import (
	"errors"
	"fmt"
	"io"

	"tidemark/format/pdata"
)

// Superblock is block 0, or the clone of it that a metadata snapshot holds.
type Superblock struct {
	Flags        uint32       `json:"flags"`
	UUID         [16]byte     `json:"-"`
	Identity     Identity     `json:"identity,omitzero"`
	SpaceMap     SpaceMapRoot `json:"space_map"`
	BlockSectors uint32       `json:"block_sectors"` // size of a data block
	NrBlocks     uint32       `json:"nr_blocks"`     // data blocks of the device
	Era          Era          `json:"era"`           // the current one
	CurrentBits  uint32       `json:"current_bits"`
	CurrentRoot  Addr         `json:"current_root"` // 0: closed cleanly
	WritesetTree Addr         `json:"writeset_tree"`
	EraArray     Addr         `json:"era_array"`
	Snapshot     Addr         `json:"snapshot"` // 0: none is held
}

// SpaceMapRoot is the part of the superblock that counts references.
type SpaceMapRoot = pdata.SpaceMapRoot

// BlockBytes returns the size of a data block in bytes.
func (s Superblock) BlockBytes() int64 { return int64(s.BlockSectors) * SectorSize }

// readSuper reads the superblock or, at another address, its clone.
func readSuper(r io.ReaderAt, a Addr) (Superblock, error) {
	buf := pdata.Buffer(1)
	if n, err := r.ReadAt(buf, a.Offset()); n < BlockSize {
		if a == 0 && (err == nil || errors.Is(err, io.EOF)) {
			return Superblock{}, fmt.Errorf("era: superblock at byte 0: only %d bytes: %w", n, ErrNotEra)
		}
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return Superblock{}, ours.Unreadable(a, pdata.EraSuper.String(), err)
	}
	return parseSuper(a, buf)
}

func parseSuper(a Addr, b []byte) (Superblock, error) {
	if magic := le.Uint64(b[32:]); magic != superMagic {
		return Superblock{}, notEra(a, b, magic)
	}
	if err := ours.Verify(a, pdata.EraSuper, b); err != nil {
		return Superblock{}, err
	}
	if v := le.Uint32(b[40:]); v > superVersion {
		return Superblock{}, fmt.Errorf("era: superblock at byte %d: version %d, know %d: %w", a.Offset(), v, superVersion, ErrNewer)
	}
	s := decodeSuper(b)
	if s.Flags&^flagClean != 0 {
		return Superblock{}, fmt.Errorf("era: superblock at byte %d: unknown flags %#x: %w", a.Offset(), s.Flags, ErrNewer)
	}
	return s, checkSuper(a, b, s)
}

func notEra(a Addr, b []byte, magic uint64) error {
	for _, c := range b {
		if c != 0 {
			return fmt.Errorf("era: superblock at byte %d: magic %#x, want %#x: %w", a.Offset(), magic, superMagic, ErrNotEra)
		}
	}
	return fmt.Errorf("era: superblock at byte %d: all zero, not formatted yet: %w", a.Offset(), ErrNotEra)
}

// checkSuper checks each field's range.
func checkSuper(a Addr, b []byte, s Superblock) error {
	const o = "superblock"
	switch {
	case le.Uint32(b[40:]) != superVersion:
		return damage(a, o, "version %d, want %d", le.Uint32(b[40:]), superVersion)
	case le.Uint32(b[176:]) != metaSectors:
		return damage(a, o, "metadata block size of %d sectors, want %d", le.Uint32(b[176:]), metaSectors)
	case s.BlockSectors == 0 || s.BlockSectors%8 != 0:
		return damage(a, o, "data block size of %d sectors is no multiple of 8", s.BlockSectors)
	case s.NrBlocks >= maxNrBlocks:
		return damage(a, o, "%d data blocks, the limit is %d", s.NrBlocks, maxNrBlocks-1)
	}
	return nil
}

func decodeSuper(b []byte) Superblock {
	return Superblock{
		Flags: le.Uint32(b[4:]),
		UUID:  [16]byte(b[16:32]),

		Identity:     identityIn(b),
		SpaceMap:     pdata.DecodeRoot(b[spaceMapRoot:]),
		BlockSectors: le.Uint32(b[172:]),
		NrBlocks:     le.Uint32(b[180:]),
		Era:          Era(le.Uint32(b[184:])),
		CurrentBits:  le.Uint32(b[188:]),
		CurrentRoot:  Addr(le.Uint64(b[192:])),
		WritesetTree: Addr(le.Uint64(b[200:])),
		EraArray:     Addr(le.Uint64(b[208:])),
		Snapshot:     Addr(le.Uint64(b[216:])),
	}
}

// encode returns the block to write at address a.
func (s Superblock) encode(a Addr) []byte {
	b := pdata.Buffer(1)
	le.PutUint32(b[4:], s.Flags)
	copy(b[16:32], s.UUID[:])
	le.PutUint64(b[32:], superMagic)
	le.PutUint32(b[40:], superVersion)
	s.SpaceMap.Encode(b[spaceMapRoot:])
	le.PutUint32(b[172:], s.BlockSectors)
	le.PutUint32(b[176:], metaSectors)
	le.PutUint32(b[180:], s.NrBlocks)
	le.PutUint32(b[184:], uint32(s.Era))
	le.PutUint32(b[188:], s.CurrentBits)
	le.PutUint64(b[192:], uint64(s.CurrentRoot))
	le.PutUint64(b[200:], uint64(s.WritesetTree))
	le.PutUint64(b[208:], uint64(s.EraArray))
	le.PutUint64(b[216:], uint64(s.Snapshot))
	s.Identity.put(b)
	pdata.Seal(pdata.EraSuper, a, b)
	return b
}
