// Package datto reads, checks and writes the COW files (".datto") of the dattobd driver, and
// those of elastio-snap, which are the same: which blocks of a device changed, and for a
// snapshot what they held before.
//
// For most uses, Open a file, Check it against the size of its device, and take Changed or
// Saved. ParseInfo reads what the driver tells in /proc/datto-info. NewWriter makes a file.
//
// The package owns the on-disk format and nothing else: it works on an io.ReaderAt or an
// io.WriterAt. The index is streamed. A File may be used by several goroutines at once when
// its io.ReaderAt allows that; a Writer is for one.
//
// # Format
//
// As in dattobd's cow_manager.c and kernel-config of releases from 2015 to 0.12. The driver
// writes in the byte order of its machine; this package reads little endian. All is in blocks
// of 4096 bytes. The header is block 0, of which the first 64 bytes count:
//
//	off  size
//	  0    4  magic 4776
//	  4    4  flags: 1 clean, 2 index only, 4 of the driver's memory (means nothing here)
//	  8    8  the next free block of this file
//	 16    8  size of the file in bytes, as the driver may use it
//	 24    8  sequence: 1 for a new chain, one more for each snapshot    (since March 2016)
//	 32   16  UUID, the same along a chain                               (since March 2016)
//	 48    8  version: 0 or 1                                            (since July 2018)
//	 56    8  changed blocks that the index has; counted in version 1
//
// What a release does not know is zero. The index follows: 8 bytes for each block of the
// device, in sections of 4096 entries. There are as many sections as the whole blocks of the
// device need; an entry for a short last block lies in them unless it would begin a new one.
// Data follows the index.
//
//	entry  0  the block did not change
//	       1  it changed, and what it held was not kept
//	    more  it changed; this block of the file has what it held
//
// A file with "index only" was made from that of a snapshot, whose data was cut off: entries
// above 1 mean no more than 1 there. The driver keeps sections in memory and writes them when
// it closes the file, with the flag "clean"; without it the index says nothing.
package datto

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

// BlockSize is the size of a block in bytes.
const BlockSize = 4096

const (
	magic          = 4776
	headerSize     = 64
	version        = 1
	flagClean      = 1
	flagIndexOnly  = 2
	flagVMalloc    = 4
	sectionEntries = 4096
	entrySize      = 8
	sectionSize    = sectionEntries * entrySize
	maxDevice      = 1 << 60 // bytes; so that no sum of ours overflows
)

var (
	// ErrNotCOW says that a file is none of the driver's.
	ErrNotCOW = errors.New("not a COW file of dattobd")
	// ErrNewer says that a file has a version or flags that this package does not know.
	ErrNewer = errors.New("the COW file is newer than this program")
	// ErrNotClean says that the driver has not closed the file: its index is in memory, or
	// lost.
	ErrNotClean = errors.New("the COW file was not closed by its driver")
	// ErrDamaged says that a file contradicts itself, or does not fit its device.
	ErrDamaged = errors.New("the COW file is damaged")
	// ErrNoData says that a file tells what changed, and not what was there before.
	ErrNoData = errors.New("the COW file has no data: it is of the incremental mode")
)

// UUID names a chain of snapshots. The zero value is that of a file from before March 2016.
type UUID [16]byte

// String returns the UUID in hexadecimal, as the driver tells it.
func (u UUID) String() string { return hex.EncodeToString(u[:]) }

// MarshalText returns what String does.
func (u UUID) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// UnmarshalText reads what String writes.
func (u *UUID) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	if err != nil || len(b) != len(u) {
		return fmt.Errorf("datto: %q is no UUID of %d hexadecimal digits", text, hex.EncodedLen(len(u)))
	}
	copy(u[:], b)
	return nil
}

// Header is the header of a COW file.
type Header struct {
	Clean     bool   `json:"clean"`
	IndexOnly bool   `json:"index_only"` // of the incremental mode
	NextFree  uint64 `json:"next_free"`  // block of the file
	Size      uint64 `json:"size"`       // bytes that the driver may use
	Sequence  uint64 `json:"sequence"`   // 0: a file from before March 2016
	UUID      UUID   `json:"uuid"`
	Version   uint64 `json:"version"`
	Changed   uint64 `json:"nr_changed_blocks"` // not counted in version 0
}

// File is a COW file that is open for reading.
type File struct {
	r      io.ReaderAt
	size   int64
	header Header
}

// Open reads and checks the header of the COW file in the first size bytes of r. The error
// wraps ErrNotCOW, ErrNewer, or is that of r. A file that is not clean is opened, and told by
// Usable.
func Open(r io.ReaderAt, size int64) (*File, error) {
	if size < BlockSize {
		return nil, fmt.Errorf("datto: %w: it has %d bytes", ErrNotCOW, size)
	}
	b := make([]byte, headerSize)
	if err := readFull(r, b, 0); err != nil {
		return nil, fmt.Errorf("datto: header at byte 0: %w", err)
	}
	le := binary.LittleEndian
	if got := le.Uint32(b); got != magic {
		return nil, fmt.Errorf("datto: header at byte 0: %w: magic %d, want %d", ErrNotCOW, got, magic)
	}
	flags := le.Uint32(b[4:])
	if unknown := flags &^ (flagClean | flagIndexOnly | flagVMalloc); unknown != 0 {
		return nil, fmt.Errorf("datto: header at byte 4: %w: flags %#x", ErrNewer, unknown)
	}
	f := &File{r: r, size: size, header: Header{
		Clean: flags&flagClean != 0, IndexOnly: flags&flagIndexOnly != 0,
		NextFree: le.Uint64(b[8:]), Size: le.Uint64(b[16:]), Sequence: le.Uint64(b[24:]),
		UUID: UUID(b[32:48]), Version: le.Uint64(b[48:]), Changed: le.Uint64(b[56:]),
	}}
	if f.header.Version > version {
		return nil, fmt.Errorf("datto: header at byte 48: %w: version %d, known is %d", ErrNewer, f.header.Version, version)
	}
	return f, nil
}

// Header returns the header.
func (f *File) Header() Header { return f.header }

// Usable returns nil when the index says what changed. The error wraps ErrNotClean.
func (f *File) Usable() error {
	if f.header.Clean {
		return nil
	}
	return fmt.Errorf("datto: %w: what changed is known to the driver alone, or lost", ErrNotClean)
}

// Device returns for how many bytes of a device at most the index of a file of the
// incremental mode has entries. In the snapshot mode nothing in a file tells; 0 is returned.
func (f *File) Device() int64 {
	if !f.header.IndexOnly || f.size < BlockSize+sectionSize || (f.size-BlockSize)%sectionSize != 0 {
		return 0
	}
	return min((f.size-BlockSize)/entrySize*BlockSize, maxDevice)
}

// layout is where things lie in the file of a device.
type layout struct {
	blocks  int64 // of the device, a short last one included
	entries int64 // of the index, in whole sections
}

func layoutOf(device int64) layout {
	whole := device / BlockSize
	return layout{
		blocks:  (device + BlockSize - 1) / BlockSize,
		entries: (whole + sectionEntries - 1) / sectionEntries * sectionEntries,
	}
}

// data is where the data begins, in bytes of the file.
func (l layout) data() int64 { return BlockSize + l.entries*entrySize }

func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}
