package thin

import (
	"errors"
	"fmt"
	"io"

	"tidemark/format/pdata"
)

// Superblock is block 0, or the clone of it that a metadata snapshot holds.
type Superblock struct {
	NeedsCheck   bool               `json:"needs_check"`
	UUID         [16]byte           `json:"-"`
	Version      uint32             `json:"version"`
	Time         uint32             `json:"time"`
	Transaction  uint64             `json:"transaction"`
	Snapshot     Addr               `json:"snapshot"` // 0: none is held
	Data         pdata.SpaceMapRoot `json:"data_space_map"`
	Metadata     pdata.SpaceMapRoot `json:"metadata_space_map"`
	Mappings     Addr               `json:"mapping_root"`
	Details      Addr               `json:"details_root"`
	BlockSectors uint32             `json:"block_sectors"` // size of a data block
	Blocks       uint64             `json:"metadata_blocks"`

	flags uint32
}

// BlockBytes returns the size of a data block in bytes.
func (s Superblock) BlockBytes() int64 { return int64(s.BlockSectors) * SectorSize }

// Flags returns the flags as they are stored.
func (s Superblock) Flags() uint32 { return s.flags }

// Metadata is dm-thin metadata opened for reading.
type Metadata struct {
	dev   pdata.Device
	super Superblock
}

// Open reads and checks the superblock of the metadata in the first size bytes of r. It
// fails with ErrNotThin, ErrDamaged or ErrNewer, or with r's error.
//
// Reads are of whole blocks, into memory aligned to 4096 bytes, so that r may be a file opened
// with O_DIRECT. While a pool is active the kernel writes past the page cache: then r must
// read the metadata device directly, and only Snapshot gives a stable view.
func Open(r io.ReaderAt, size int64) (*Metadata, error) {
	if size < pdata.BlockSize {
		return nil, fmt.Errorf("thin: superblock at byte 0: only %d bytes: %w", size, ErrNotThin)
	}
	m := &Metadata{dev: pdata.Device{Format: ours, R: r, Blocks: min(uint64(size)/pdata.BlockSize, pdata.MaxMetadataBlocks)}}
	var err error
	m.super, err = m.read(0)
	return m, err
}

// Superblock returns block 0 as it was when the metadata was opened.
func (m *Metadata) Superblock() Superblock { return m.super }

// Live returns the newest committed state. It is stable only while no kernel uses the
// metadata.
func (m *Metadata) Live() *View { return &View{dev: m.dev, super: m.super} }

// Snapshot returns the held metadata snapshot. It stays as it is until it is released, also
// while the pool is in use. Without one it fails with ErrNoSnapshot.
func (m *Metadata) Snapshot() (*View, error) {
	if m.super.Snapshot == 0 {
		return nil, fmt.Errorf("thin: superblock at byte 0: %w", ErrNoSnapshot)
	}
	return m.SnapshotAt(m.super.Snapshot)
}

// SnapshotAt returns the metadata snapshot at a block.
func (m *Metadata) SnapshotAt(at Addr) (*View, error) {
	if err := m.dev.Inside(at, "metadata snapshot"); err != nil {
		return nil, err
	}
	s, err := m.read(at)
	if err != nil {
		return nil, err
	}
	if s.BlockSectors != m.super.BlockSectors {
		return nil, ours.Damage(at, "metadata snapshot", "data blocks of %d sectors, the superblock says %d", s.BlockSectors, m.super.BlockSectors)
	}
	s.Data, s.Metadata = m.super.Data, m.super.Metadata // its own are zeros
	return &View{dev: m.dev, super: s, at: at}, nil
}

// read reads the superblock or, at another address, its clone.
func (m *Metadata) read(a Addr) (Superblock, error) {
	b := pdata.Buffer(1)
	if n, err := m.dev.R.ReadAt(b, a.Offset()); n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return Superblock{}, ours.Unreadable(a, pdata.ThinSuper.String(), err)
	}
	if magic := le.Uint64(b[32:]); magic != superMagic {
		return Superblock{}, fmt.Errorf("thin: superblock at byte %d: magic %d, want %d: %w", a.Offset(), magic, superMagic, ErrNotThin)
	}
	if err := ours.Verify(a, pdata.ThinSuper, b); err != nil {
		return Superblock{}, err
	}
	s := decode(b)
	if features := le.Uint32(b[360:]); s.Version > superVersion || features != 0 || s.flags&^flagCheck != 0 {
		return s, fmt.Errorf("thin: superblock at byte %d: version %d, flags %#x, features %#x; known are version %d and none: %w",
			a.Offset(), s.Version, s.flags, features, superVersion, ErrNewer)
	}
	return s, checkSuper(a, b, s)
}

func checkSuper(a Addr, b []byte, s Superblock) error {
	const o = "superblock"
	switch {
	case s.Version == 0:
		return ours.Damage(a, o, "version 0")
	case le.Uint32(b[340:]) != metaSectors:
		return ours.Damage(a, o, "metadata block size of %d sectors, want %d", le.Uint32(b[340:]), metaSectors)
	case s.BlockSectors < minSectors || s.BlockSectors > maxSectors || s.BlockSectors%minSectors != 0:
		return ours.Damage(a, o, "data block size of %d sectors, want a multiple of %d up to %d", s.BlockSectors, minSectors, maxSectors)
	}
	return nil
}

func decode(b []byte) Superblock {
	flags := le.Uint32(b[4:])
	return Superblock{
		NeedsCheck: flags&flagCheck != 0, flags: flags,
		UUID: [16]byte(b[16:32]), Version: le.Uint32(b[40:]), Time: le.Uint32(b[44:]),
		Transaction: le.Uint64(b[48:]), Snapshot: Addr(le.Uint64(b[56:])),
		Data: pdata.DecodeRoot(b[64:]), Metadata: pdata.DecodeRoot(b[192:]),
		Mappings: Addr(le.Uint64(b[320:])), Details: Addr(le.Uint64(b[328:])),
		BlockSectors: le.Uint32(b[336:]), Blocks: le.Uint64(b[344:]),
	}
}
