// Package redo is the format of the journal in which a change of a target waits
// until all of it is known to be good: places with data or zeros.
//
// For most uses, package transfer/transaction is the way: it writes such a journal and
// brings it to a target. This package reads and writes bytes; it opens no file and knows
// no device. It refuses a journal that is damaged, that is not of this format, or that a
// newer tidemark wrote, each with an error of its own, and never allocates by a number
// it has not checked. A Reader holds eight bytes for each table, and while it checks a
// pass whose entries are not in order, 16 bytes for each of them. Nothing in the package
// is safe for concurrent use.
//
// A journal knows no blocks: an entry begins and ends at any byte. Data lies at the same
// place within 4096 bytes as in the target, so that a filesystem that can share blocks
// between files need not copy it.
//
// All integers are little endian. A checksum is the CRC-32C.
//
//	offset  size  meaning
//	0       8     magic "TMREDO\r\n"
//	8       4     version, 3
//	12      4     zeros
//	16      8     size of the target before, bytes
//	24      8     size of the target afterwards, bytes
//	32      8     offset of the last table, 0 when there is none
//	40      8     number of tables
//	48      8     number of entries of all tables
//	56      8     length of the journal, bytes
//	64      32    what the target was when the journal was committed; zeros: not known
//	96      8     offset of the blob, 0 when there is none
//	104     4     length of the blob in bytes, at most 1 MiB
//	108     4     checksum of the blob
//	112     4     checksum of bytes 0 to 111
//	116     3980  zeros
//	4096          data, tables and the blob, in the order in which they were written,
//	              with zeros between them where data asks for its place
//
// The blob is for the owner of the target: the writer of the journal puts into it what
// goes with the change. The header is written last. A table:
//
//	offset  size  meaning
//	0       8     magic "TMTABLE\n"
//	8       8     offset of the table before this one, 0 in the first
//	16      4     number of entries, 1 to 4096
//	20      4     checksum of bytes 0 to 19 and of the entries
//	24      32×n  entries
//
// An entry:
//
//	offset  size  meaning
//	0       8     offset in the target
//	8       8     length in bytes, above zero; of data at most 16 MiB
//	16      8     offset of the data in the journal, at or behind the end of the data
//	              of the entry before; 0: the target becomes zeros
//	24      4     checksum of the data, 0 without data
//	28      4     number of the pass, at least that of the entry before
//
// Entries of one pass do not overlap and come in any order. Where entries of two passes
// overlap the later pass holds.
//
// Versions 1 and 2, which are still read, have no blob and only pass 0. In version 2
// the checksum of the header is at 96, of what is before it, in version 1 at 64. What
// they say of the target counts as not known. Magic and version have their places in
// every version.
package redo

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"

	"tidemark/extent"
)

const (
	magic       = "TMREDO\r\n"
	tableMagic  = "TMTABLE\n"
	mirrorMagic = "TMJRNL\r\n" // of the journals that mirrors had before this format
	version     = 3
	align       = 4096 // of data; also the length of the header
	targetAt    = 64   // in the header, of the Digest
	blobAt      = 96   // in the header
	tableHead   = 24
	entrySize   = 32
	maxEntries  = 4096     // of a table
	maxData     = 16 << 20 // of an entry, bytes
	maxTableLen = tableHead + maxEntries*entrySize
)

// headerUsed is how many bytes of the header its checksum covers, by version.
var headerUsed = [version + 1]int{1: 64, 2: 96, 3: 112}

// MaxBlob bounds the blob of a journal, in bytes.
const MaxBlob = 1 << 20

var (
	// ErrNotOurs says that the bytes are not of this format at all.
	ErrNotOurs = errors.New("not a redo journal of tidemark")
	// ErrDamaged says that the bytes were of this format once, or that a journal
	// was never sealed.
	ErrDamaged = errors.New("redo journal is damaged")
	// ErrNewer says that a newer tidemark wrote the bytes.
	ErrNewer = errors.New("redo journal of a newer tidemark")
	// ErrOldMirror says that an earlier tidemark wrote the journal for a mirror, in
	// a format that is read no more. It wraps ErrNotOurs.
	ErrOldMirror = fmt.Errorf("%w, but of a mirror by an earlier one: let the tidemark that wrote it finish it, or overwrite the target, which compares everything", ErrNotOurs)
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Digest stands for what a target is, and for when it was last written to. What goes
// into it is up to who writes the journal.
type Digest [32]byte

// Header says what a journal is a change of.
type Header struct {
	Before, After int64 // size of the target, bytes
	Entries       int64
	Target        Digest // when the journal was committed; zero: not known
	lastTable     int64
	tables        int64
	length        int64
	blobAt        int64
	blobLen       uint32
	blobSum       uint32
}

// Size returns the length of the journal in bytes.
func (h Header) Size() int64 { return h.length }

func (h Header) encode() []byte {
	b := make([]byte, align)
	copy(b, magic)
	binary.LittleEndian.PutUint32(b[8:], version)
	for i, v := range []int64{h.Before, h.After, h.lastTable, h.tables, h.Entries, h.length} {
		binary.LittleEndian.PutUint64(b[16+8*i:], uint64(v))
	}
	copy(b[targetAt:], h.Target[:])
	binary.LittleEndian.PutUint64(b[blobAt:], uint64(h.blobAt))
	binary.LittleEndian.PutUint32(b[blobAt+8:], h.blobLen)
	binary.LittleEndian.PutUint32(b[blobAt+12:], h.blobSum)
	used := headerUsed[version]
	binary.LittleEndian.PutUint32(b[used:], crc32.Checksum(b[:used], castagnoli))
	return b
}

// decodeHeader reads the header of a journal of size bytes.
func decodeHeader(b []byte, size int64) (Header, error) {
	switch m := string(b[:min(len(b), len(magic))]); m {
	case magic:
	case mirrorMagic:
		return Header{}, fmt.Errorf("header: magic %q: %w", m, ErrOldMirror)
	default:
		return Header{}, fmt.Errorf("header: magic %q: %w", m, ErrNotOurs)
	}
	if len(b) < align {
		return Header{}, fmt.Errorf("header: %d bytes, want %d: %w", len(b), align, ErrDamaged)
	}
	// Where the checksum is depends on the version, which therefore comes first.
	v := binary.LittleEndian.Uint32(b[8:])
	switch {
	case v > version:
		return Header{}, fmt.Errorf("header: version %d, know %d: %w", v, version, ErrNewer)
	case v == 0:
		return Header{}, fmt.Errorf("header: version 0: %w", ErrDamaged)
	}
	used := headerUsed[v]
	if got, want := crc32.Checksum(b[:used], castagnoli), binary.LittleEndian.Uint32(b[used:]); got != want {
		return Header{}, fmt.Errorf("header: checksum %08x, want %08x: %w", want, got, ErrDamaged)
	}
	field := func(i int) int64 { return int64(binary.LittleEndian.Uint64(b[16+8*i:])) }
	h := Header{Before: field(0), After: field(1), lastTable: field(2), tables: field(3), Entries: field(4), length: field(5)}
	if v == version {
		h.Target = Digest(b[targetAt:])
		h.blobAt = int64(binary.LittleEndian.Uint64(b[blobAt:]))
		h.blobLen, h.blobSum = binary.LittleEndian.Uint32(b[blobAt+8:]), binary.LittleEndian.Uint32(b[blobAt+12:])
	}
	return h, h.check(size)
}

func (h Header) check(size int64) error {
	switch {
	case h.length != size:
		return fmt.Errorf("header: the journal has %d bytes, want %d: %w", size, h.length, ErrDamaged)
	case h.Before < 0 || h.After < 0:
		return fmt.Errorf("header: target of %d and then %d bytes: %w", h.Before, h.After, ErrDamaged)
	case (h.lastTable == 0) != (h.tables == 0) || h.tables < 0 || h.tables > size/tableHead:
		return fmt.Errorf("header: %d tables, the last at %d: %w", h.tables, h.lastTable, ErrDamaged)
	case h.Entries < h.tables || h.Entries > h.tables*maxEntries:
		return fmt.Errorf("header: %d entries in %d tables: %w", h.Entries, h.tables, ErrDamaged)
	case h.blobLen > MaxBlob || (h.blobAt == 0) != (h.blobLen == 0) || h.blobAt < 0 || h.blobAt > size-int64(h.blobLen):
		return fmt.Errorf("header: blob of %d bytes at %d: %w", h.blobLen, h.blobAt, ErrDamaged)
	}
	return nil
}

// Entry is one piece of the change.
type Entry struct {
	extent.Extent       // in the target, bytes
	At            int64 // of the data in the journal; 0: the target becomes zeros
	Pass          uint32
	sum           uint32
}

// Check holds the data of an entry, all of it, against its checksum. The error wraps
// ErrDamaged.
func (e Entry) Check(data []byte) error {
	if got := crc32.Checksum(data, castagnoli); got != e.sum {
		return fmt.Errorf("redo: data at %d, for %v: checksum %08x, want %08x: %w", e.At, e.Extent, got, e.sum, ErrDamaged)
	}
	return nil
}

// Zero says that the target becomes zeros here.
func (e Entry) Zero() bool { return e.At == 0 }

func (e Entry) encode(b []byte) {
	binary.LittleEndian.PutUint64(b, uint64(e.Off))
	binary.LittleEndian.PutUint64(b[8:], uint64(e.Len))
	binary.LittleEndian.PutUint64(b[16:], uint64(e.At))
	binary.LittleEndian.PutUint32(b[24:], e.sum)
	binary.LittleEndian.PutUint32(b[28:], e.Pass)
}

func decodeEntry(b []byte) Entry {
	return Entry{
		Extent: extent.Extent{Off: int64(binary.LittleEndian.Uint64(b)), Len: int64(binary.LittleEndian.Uint64(b[8:]))},
		At:     int64(binary.LittleEndian.Uint64(b[16:])),
		sum:    binary.LittleEndian.Uint32(b[24:]),
		Pass:   binary.LittleEndian.Uint32(b[28:]),
	}
}

// check holds an entry that belongs to pass or a later one, and whose data must not
// begin before data, against its journal.
func (e Entry) check(h Header, pass uint32, data int64) error {
	switch {
	case !e.Valid() || e.Empty() || e.End() > h.After:
		return fmt.Errorf("extent %v in a target of %d bytes: %w", e.Extent, h.After, ErrDamaged)
	case e.Pass < pass:
		return fmt.Errorf("pass %d after pass %d: %w", e.Pass, pass, ErrDamaged)
	case e.Zero():
		return nil
	case e.Len > maxData:
		return fmt.Errorf("%d bytes of data: at most %d: %w", e.Len, maxData, ErrDamaged)
	case e.At < data:
		return fmt.Errorf("data at %d begins before %d: %w", e.At, data, ErrDamaged)
	case e.At > math.MaxInt64-e.Len || e.At+e.Len > h.length:
		return fmt.Errorf("data at %d of a journal of %d bytes: %w", e.At, h.length, ErrDamaged)
	}
	return nil
}
