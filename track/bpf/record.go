package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"tidemark/block"
	"tidemark/linux/atomicfile"
	"tidemark/linux/bpf"
	"tidemark/linux/sysfs"
	"tidemark/track/history"
)

const recordVersion = 1

// record says what is tracked, since when and how. It is written when tracking
// starts and never changed.
type record struct {
	Version     int       `json:"version"`
	Generation  string    `json:"generation"`
	Boot        string    `json:"boot"`
	Disk        string    `json:"disk"`
	Major       uint32    `json:"major"`
	Minor       uint32    `json:"minor"`
	DiskSeq     uint64    `json:"diskseq"`
	Folder      uint64    `json:"folder,omitempty"` // as block.Identity has it
	Size        int64     `json:"size"`             // bytes
	Granularity int64     `json:"granularity"`      // bytes
	Slot        uint32    `json:"slot"`
	BioBased    bool      `json:"bio_based"`
	Since       time.Time `json:"since"`
	// Mapping is a hash of the device-mapper tables that the disk is made of.
	Mapping string `json:"mapping,omitempty"`
	// Swaps: a table that merges a snapshot into the disk is seen also when it is there no more.
	Swaps bool `json:"swaps,omitempty"`
	// Before says why marks of earlier generations are lost.
	Before string `json:"before,omitempty"`
	// Ancestors are the generations of earlier boots that this one took up.
	Ancestors []ancestor `json:"ancestors,omitempty"`
}

// loadRecord reads the record of a disk. The error wraps fs.ErrNotExist, or
// atomicfile.ErrDamaged.
func loadRecord(pl paths, disk string) (record, error) {
	var r record
	path := pl.record(disk)
	if err := atomicfile.ReadJSON(path, &r); err != nil {
		return record{}, fmt.Errorf("track: %w", err)
	}
	if r.Version != recordVersion || !history.IsID(r.Generation) || r.Size <= 0 || validBlockSize(r.Granularity, r.Size, bpf.MaxBlocks) != nil ||
		r.Slot >= bpf.MaxSlots {
		return record{}, fmt.Errorf("track: %s: %w: values out of range", path, atomicfile.ErrDamaged)
	}
	return r, nil
}

// records returns the readable records of all disks.
func records(pl paths) ([]record, error) {
	entries, err := os.ReadDir(pl.run)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("track: list tracked disks: %w", err)
	}
	var recs []record
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		r, err := loadRecord(pl, e.Name())
		if errors.Is(err, fs.ErrNotExist) || damaged(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		recs = append(recs, r)
	}
	return recs, nil
}

func (r record) save(pl paths) error {
	return history.Unwritable(atomicfile.WriteJSON(pl.record(r.Disk), atomicfile.Options{Mode: 0o600}, r))
}

func newRecord(id block.Identity, granularity int64, slot uint32, mapping, before string) (record, error) {
	boot, err := sysfs.BootID()
	if err != nil {
		return record{}, fmt.Errorf("track: %w", err)
	}
	gen, err := history.NewID()
	if err != nil {
		return record{}, err
	}
	return record{
		Version:     recordVersion,
		Generation:  gen,
		Boot:        boot,
		Disk:        id.Disk,
		Major:       id.DiskMajor,
		Minor:       id.DiskMinor,
		DiskSeq:     id.DiskSeq,
		Folder:      id.Folder,
		Size:        id.DiskSize,
		Granularity: granularity,
		Slot:        slot,
		BioBased:    id.BioBased,
		Since:       time.Now().UTC(),
		Mapping:     mapping,
		Before:      before,
	}, nil
}

func (r record) dev() uint32    { return bpf.DevT(r.Major, r.Minor) }
func (r record) blocks() uint64 { return uint64((r.Size + r.Granularity - 1) / r.Granularity) }

// differs says in words why the record is not of this disk in this boot; empty
// when it is.
func (r record) differs(id block.Identity) (string, error) {
	boot, err := sysfs.BootID()
	if err != nil {
		return "", fmt.Errorf("track: %w", err)
	}
	switch {
	case r.Boot != boot:
		return "the machine was rebooted since", nil
	case r.Disk != id.Disk || r.Major != id.DiskMajor || r.Minor != id.DiskMinor:
		return fmt.Sprintf("the device is now on disk %s (%d:%d), was %s (%d:%d)",
			id.Disk, id.DiskMajor, id.DiskMinor, r.Disk, r.Major, r.Minor), nil
	case r.DiskSeq != id.DiskSeq:
		return fmt.Sprintf("the device was re-plugged (diskseq %d, was %d)", id.DiskSeq, r.DiskSeq), nil
	case r.Folder != id.Folder:
		return "the device was re-plugged, or is made of another file", nil
	case r.Size != id.DiskSize:
		return fmt.Sprintf("the disk was resized from %d to %d bytes", r.Size, id.DiskSize), nil
	}
	return "", nil
}

const (
	minBlockSize = 4096
	maxBlockSize = 1 << 30 // format/epochs holds no larger
)

// defaultBlockSize returns 4096 for disks up to 1 TiB and doubles it until the bitmap takes no
// more than 32 MiB, half of what holds most blocks. Where a block takes a byte, that is
// from 128 GiB on.
func defaultBlockSize(size int64, most uint64) int64 {
	b := int64(minBlockSize)
	for uint64((size+b-1)/b) > most/2 {
		b *= 2
	}
	return b
}

// validBlockSize refuses a block size of which a disk has more than most.
func validBlockSize(b, size int64, most uint64) error {
	switch {
	case b < minBlockSize || b > maxBlockSize || b&(b-1) != 0:
		return fmt.Errorf("track: block size %d: must be a power of two from %d to %d", b, minBlockSize, maxBlockSize)
	case uint64((size+b-1)/b) > most:
		return fmt.Errorf("track: block size %d: too small for a disk of %d bytes, choose at least %d", b, size, defaultBlockSize(size, most)/2)
	}
	return nil
}
