// Package logwrites reads what the kernel's dm-log-writes target logged of the writes
// to a disk, and makes of it the disk as it was, or may have been, at any moment.
//
// It owns the format of the log and the replay; it opens no device. A Log may be read
// by several goroutines, a Replay serves one.
//
// # The log
//
// From Documentation/admin-guide/device-mapper/log-writes.rst and the structures in
// drivers/md/dm-log-writes.c. All integers are little endian; a sector is as long as a
// logical sector of the logged disk. The first sector of the log:
//
//	offset  size  meaning
//	0       8     magic 0x6a736677736872
//	8       8     version, 1
//	16      8     number of entries
//	24      4     bytes in a sector
//
// Entries follow, each a sector and then the data that was written, if any:
//
//	offset  size  meaning
//	0       8     sector of the disk
//	8       8     number of sectors; of a discard no data follow
//	16      8     flags: 1 flush, 2 FUA, 4 discard, 8 mark, 16 metadata
//	24      8     bytes of the name of a mark
//	32            the name of a mark
//
// # What the order means
//
// A write is logged when a flush that was sent after its completion has completed, and
// just before that flush; a FUA write when it has completed. At a flush or FUA entry
// all entries before it are durable, therefore, whatever else the disk may hold.
package logwrites

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
)

const (
	magic      = 0x6a736677736872
	version    = 1
	superSize  = 28
	entrySize  = 32
	minSector  = 512
	maxSector  = 4096
	bioSector  = 512     // the unit in which an entry's data is torn, bytes
	maxEntries = 1 << 22 // of a log that is believed
)

// Flags tell what kind of write an entry is.
type Flags uint64

// The flags; see drivers/md/dm-log-writes.c.
const (
	Flush    Flags = 1 << 0 // all entries before it are durable
	FUA      Flags = 1 << 1 // it is durable itself
	Discard  Flags = 1 << 2 // its sectors hold nothing any more
	Mark     Flags = 1 << 3 // no write, but a name that was given to the moment
	Metadata Flags = 1 << 4 // a filesystem calls it so
)

var (
	// ErrNotLog says that the bytes are no log of dm-log-writes.
	ErrNotLog = errors.New("not a log of dm-log-writes")
	// ErrDamaged says that a log contradicts itself.
	ErrDamaged = errors.New("damaged")
)

// Entry is one logged write. Offset and length are in bytes of the logged disk.
type Entry struct {
	Off, Len int64
	Flags    Flags
	Name     string // of a mark
	data     int64  // where its data are in the log
}

// Has reports whether the entry has one of the flags.
func (e Entry) Has(f Flags) bool { return e.Flags&f != 0 }

// Log is a log whose entries have been read; its data are read when needed.
type Log struct {
	Entries []Entry
	r       io.ReaderAt
}

// Read reads the entries of a log in the first size bytes of r. Errors wrap ErrNotLog,
// ErrDamaged or the one of r.
func Read(r io.ReaderAt, size int64) (*Log, error) {
	var head [superSize]byte
	if size < superSize {
		return nil, fmt.Errorf("logwrites: %d bytes: %w", size, ErrNotLog)
	}
	if _, err := r.ReadAt(head[:], 0); err != nil {
		return nil, fmt.Errorf("logwrites: super: %w", err)
	}
	if m, v := binary.LittleEndian.Uint64(head[:]), binary.LittleEndian.Uint64(head[8:]); m != magic || v != version {
		return nil, fmt.Errorf("logwrites: magic %#x, version %d: %w", m, v, ErrNotLog)
	}
	count := binary.LittleEndian.Uint64(head[16:])
	sector := int64(binary.LittleEndian.Uint32(head[24:]))
	if sector < minSector || sector > maxSector || bits.OnesCount64(uint64(sector)) != 1 || count > maxEntries {
		return nil, fmt.Errorf("logwrites: %d entries, sectors of %d bytes: %w", count, sector, ErrDamaged)
	}
	l := &Log{r: r}
	at, buf := sector, make([]byte, sector)
	for n := range count {
		e, next, err := readEntry(r, buf, at, size)
		if err != nil {
			return nil, fmt.Errorf("logwrites: entry %d at byte %d: %w", n, at, err)
		}
		l.Entries = append(l.Entries, e)
		at = next
	}
	return l, nil
}

// readEntry reads the entry at byte at of a log of size bytes, and tells where the
// next one is. buf is as long as a sector.
func readEntry(r io.ReaderAt, buf []byte, at, size int64) (e Entry, next int64, err error) {
	sector := int64(len(buf))
	if at > size-sector {
		return e, 0, fmt.Errorf("behind the end: %w", ErrDamaged)
	}
	if _, err := r.ReadAt(buf, at); err != nil {
		return e, 0, err
	}
	start, count := binary.LittleEndian.Uint64(buf), binary.LittleEndian.Uint64(buf[8:])
	name := binary.LittleEndian.Uint64(buf[24:])
	const most = 1 << 40 // sectors
	if start > most || count > most {
		return e, 0, fmt.Errorf("%d sectors at sector %d: %w", count, start, ErrDamaged)
	}
	e = Entry{
		Off: int64(start) * sector, Len: int64(count) * sector,
		Flags: Flags(binary.LittleEndian.Uint64(buf[16:])), data: at + sector,
	}
	next = e.data
	switch {
	case e.Has(Mark) && (count != 0 || name > uint64(sector-entrySize)):
		return e, 0, fmt.Errorf("mark of %d bytes and %d sectors: %w", name, count, ErrDamaged)
	case e.Has(Mark):
		e.Name = string(buf[entrySize : entrySize+name])
	case !e.Has(Discard):
		next += e.Len
	}
	if next > size {
		return e, 0, fmt.Errorf("%d bytes of data behind the end: %w", e.Len, ErrDamaged)
	}
	return e, next, nil
}

// Marked returns the number of the mark of that name, -1 when there is none. Entries
// before it are those that were durable when it was set.
func (l *Log) Marked(name string) int {
	for n, e := range l.Entries {
		if e.Has(Mark) && e.Name == name {
			return n
		}
	}
	return -1
}
