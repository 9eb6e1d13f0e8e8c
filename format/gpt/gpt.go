// Package gpt moves the second copy of a GUID partition table to the end of a disk that is
// larger than the one that the table was made for.
//
// For most uses, Read the table of a disk and call Table.Move. The work is done by
// github.com/diskfs/go-diskfs on a copy in memory; this package sees that nothing but what
// must change is changed, and only then writes: the entries stay byte for byte, and of a
// header only the place of the other one, the last sector that may be used, and the
// checksum differ. A table for which that does not hold is refused (ErrUnusual), and
// nothing was written.
//
// Of the protective MBR the size is set, at its usual place, where it was that of the whole
// disk. The package opens no file.
package gpt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/diskfs/go-diskfs/partition/gpt"
)

var (
	// ErrNone says that there is no table whose checksums are right.
	ErrNone = errors.New("no partition table of the kind GPT")
	// ErrUnusual says that a table is right, and not of the form that is moved here.
	ErrUnusual = errors.New("the partition table has an unusual form")
)

const (
	headerSize = 92  // bytes; UEFI 2.10, 5.3.2
	entryAt    = 446 // of the first entry of the protective MBR, bytes
	typeGPT    = 0xee
	wholeDisk  = 0xffffffff // in the protective MBR: more sectors than it can say
)

// Types of partitions that firmware boots from.
const (
	TypeEFI      = string(gpt.EFISystemPartition)
	TypeBIOSBoot = string(gpt.BIOSBoot)
)

// Partition is one of a Table.
type Partition struct {
	Number      int
	Type        string // a GUID in capital letters
	Start, Size int64  // bytes
}

// Table is a table as it stands on a disk.
type Table struct {
	SectorSize int // bytes, of the disk that it was made for
	Partitions []Partition

	table  *gpt.Table
	header []byte // the first one
	all    []byte // the entries
}

// Read reads the first copy of the table of a disk, with sectors of 512 or 4096 bytes. The
// error wraps ErrNone, or is that of r.
func Read(r io.ReaderAt) (*Table, error) {
	for _, sector := range []int{512, 4096} {
		head := make([]byte, headerSize)
		if _, err := r.ReadAt(head, int64(sector)); errors.Is(err, io.EOF) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("gpt: header: %w", err)
		}
		if string(head[:8]) != "EFI PART" {
			continue
		}
		return read(r, sector, head)
	}
	return nil, fmt.Errorf("gpt: %w", ErrNone)
}

func read(r io.ReaderAt, sector int, head []byte) (*Table, error) {
	const most = 1 << 20 // bytes of entries: 8192 of them
	count, each := binary.LittleEndian.Uint32(head[80:]), binary.LittleEndian.Uint32(head[84:])
	if each != gpt.PartitionEntrySize || count > most/gpt.PartitionEntrySize {
		return nil, fmt.Errorf("gpt: %d entries of %d bytes: %w", count, each, ErrNone)
	}
	// Without a size the library does not look for the second copy.
	table, err := gpt.Read(&memory{ReaderAt: r}, sector, sector)
	if err != nil {
		return nil, fmt.Errorf("gpt: %w: %w", ErrNone, err)
	}
	t := &Table{SectorSize: sector, table: table, header: head, all: make([]byte, count*each)}
	if _, err := r.ReadAt(t.all, int64(binary.LittleEndian.Uint64(head[72:]))*int64(sector)); err != nil {
		return nil, fmt.Errorf("gpt: entries: %w", err)
	}
	for _, p := range table.Partitions {
		t.Partitions = append(t.Partitions, Partition{
			Number: p.Index, Type: string(p.Type), Start: int64(p.Start) * int64(sector), Size: int64(p.Size),
		})
	}
	return t, nil
}

// Size is the size of the disk that the table was made for, in bytes.
func (t *Table) Size() int64 { return int64(t.table.TotalSize()) }

// Disk is what Move writes to.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// Move makes the table one of a disk of size bytes, on which it stands. A power cut leaves
// a disk of which the first copy or the second is right, and the next Move ends it. The
// error wraps ErrUnusual when nothing was written.
func (t *Table) Move(d Disk, size int64) error {
	was := t.Size()
	if err := t.table.Repair(uint64(size)); err != nil {
		return fmt.Errorf("gpt: %w", err)
	}
	t.table.ProtectiveMBR = false // which the library would make anew
	m := &memory{ReaderAt: d}
	if err := t.table.Write(m, size); err != nil {
		return fmt.Errorf("gpt: %w: %w", ErrUnusual, err)
	}
	if err := t.check(m.writes, size); err != nil {
		return err
	}
	mbr, err := t.protective(d, was, size)
	if err != nil {
		return err
	}
	for _, w := range append(m.writes, mbr...) {
		if _, err := d.WriteAt(w.data, w.off); err != nil {
			return fmt.Errorf("gpt: at byte %d: %w", w.off, err)
		}
		if err := d.Sync(); err != nil {
			return fmt.Errorf("gpt: %w", err)
		}
	}
	return nil
}

// check holds what is to be written against what stands on the disk.
func (t *Table) check(writes []write, size int64) error {
	sector := int64(t.SectorSize)
	last := size/sector - 1
	entries := int64(len(t.all))
	if len(writes) != 4 || entries%sector != 0 {
		return fmt.Errorf("gpt: %d writes, %d bytes of entries: %w", len(writes), entries, ErrUnusual)
	}
	places := []int64{last*sector - entries, last * sector, 2 * sector, sector}
	for i, w := range writes {
		what := t.all
		if i%2 == 1 {
			what = t.header
		}
		if w.off != places[i] || !t.same(w.data, what, i) {
			return fmt.Errorf("gpt: %d bytes at %d: %w", len(w.data), w.off, ErrUnusual)
		}
	}
	return nil
}

// same compares entries, or a header but for what a move changes.
func (t *Table) same(now, was []byte, i int) bool {
	if i%2 == 0 {
		return bytes.Equal(now, was)
	}
	if len(now) != t.SectorSize || len(bytes.Trim(now[headerSize:], "\x00")) > 0 {
		return false
	}
	changes := [][2]int{{16, 20}, {32, 40}, {48, 56}} // checksum, the other header, last sector to use
	if i == 1 {
		changes = append(changes, [2]int{24, 32}, [2]int{72, 80}) // the second: where it and its entries are
	}
	now, was = slices.Clone(now[:headerSize]), slices.Clone(was)
	for _, c := range changes {
		clear(now[c[0]:c[1]])
		clear(was[c[0]:c[1]])
	}
	return bytes.Equal(now, was)
}

// protective returns the write that sets the size in the protective MBR, if it is needed.
func (t *Table) protective(r io.ReaderAt, was, size int64) ([]write, error) {
	sector := make([]byte, t.SectorSize)
	if _, err := r.ReadAt(sector, 0); err != nil {
		return nil, fmt.Errorf("gpt: protective MBR: %w", err)
	}
	entry := sector[entryAt : entryAt+16]
	said := binary.LittleEndian.Uint32(entry[12:])
	if entry[4] != typeGPT || said != t.sectors(was) {
		return nil, nil
	}
	binary.LittleEndian.PutUint32(entry[12:], t.sectors(size))
	return []write{{0, sector}}, nil
}

// sectors is how many sectors after the first a disk has, as far as an MBR can say.
func (t *Table) sectors(size int64) uint32 {
	return uint32(min(size/int64(t.SectorSize)-1, wholeDisk))
}
