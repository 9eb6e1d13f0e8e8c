package era

import (
	"fmt"
	"io"

	"tidemark/format/pdata"
)

// Metadata is dm-era metadata opened for reading.
type Metadata struct {
	dev   pdata.Device
	super Superblock
}

// Open reads and checks the superblock of the metadata in the first size bytes
// of r. It fails with ErrNotEra, ErrDamaged or ErrNewer, or with r's error.
//
// Reads are of whole blocks, into memory aligned to BlockSize, so that r may be a
// file opened with O_DIRECT. While a device is active the kernel writes past the
// page cache: then r must read the metadata device directly, and only Snapshot
// gives a stable view.
func Open(r io.ReaderAt, size int64) (*Metadata, error) {
	if size < BlockSize {
		return nil, fmt.Errorf("era: superblock at byte 0: only %d bytes: %w", size, ErrNotEra)
	}
	s, err := readSuper(r, 0)
	if err != nil {
		return nil, err
	}
	blocks := min(uint64(size)/BlockSize, MaxMetadataBlocks)
	return &Metadata{dev: pdata.Device{Format: ours, R: r, Blocks: blocks}, super: s}, nil
}

// Superblock returns block 0 as it was when the metadata was opened.
func (m *Metadata) Superblock() Superblock { return m.super }

// Live returns the newest committed state. It is stable only while no kernel
// uses the metadata.
func (m *Metadata) Live() *View {
	return &View{dev: m.dev, super: m.super}
}

// Snapshot returns the held metadata snapshot. It stays as it is until it is
// dropped, also while the device is written to. Without one it fails with
// ErrNoSnapshot.
func (m *Metadata) Snapshot() (*View, error) {
	at := m.super.Snapshot
	if at == 0 {
		return nil, fmt.Errorf("era: superblock at byte 0: %w", ErrNoSnapshot)
	}
	if err := m.dev.Inside(at, "metadata snapshot"); err != nil {
		return nil, err
	}
	s, err := readSuper(m.dev.R, at)
	if err != nil {
		return nil, err
	}
	if s.BlockSectors != m.super.BlockSectors {
		return nil, damage(at, "metadata snapshot", "data blocks of %d sectors, the superblock says %d", s.BlockSectors, m.super.BlockSectors)
	}
	// The clone's current writeset is not reference counted: the kernel
	// changes and frees it while the snapshot is held.
	s.CurrentRoot, s.CurrentBits = 0, 0
	return &View{dev: m.dev, super: s, at: at}, nil
}

// View is one consistent state of the metadata.
type View struct {
	dev   pdata.Device
	super Superblock
	at    Addr // of the held clone, 0 for the live state
}

// Superblock returns the fields that hold for this view. For a snapshot, Era is
// the era that began when the snapshot was taken: the value for Query.Since of the
// next copy.
func (v *View) Superblock() Superblock { return v.super }

// Clean says that no writeset is open: the device was closed properly, or the
// view is a snapshot.
func (v *View) Clean() bool { return v.super.CurrentRoot == 0 }

// Recheck reads the superblock again and fails with ErrSnapshotGone when the
// snapshot this view shows is no longer held. Call it after the last use of a
// snapshot on an active device: its answers count only when Recheck succeeds.
func (v *View) Recheck() error {
	if v.at == 0 {
		return nil
	}
	now, err := Open(v.dev.R, int64(v.dev.Blocks)*BlockSize)
	if err != nil {
		return err
	}
	s, err := now.Snapshot()
	if err != nil || s.super != v.super {
		return fmt.Errorf("era: metadata snapshot at byte %d: %w", v.at.Offset(), ErrSnapshotGone)
	}
	return nil
}
