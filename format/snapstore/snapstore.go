// Package snapstore reads, checks and writes the persistent exception store of Linux's
// dm-snapshot target, version 1: what a snapshot keeps apart from its origin.
//
// For most uses, Open a store, Check it against the size of the origin, and take its
// Exceptions, which say which chunk of the store belongs at which chunk of the origin.
// NewWriter makes a store.
//
// The package owns the on-disk format and nothing else: it works on an io.ReaderAt or an
// io.WriterAt and opens no device. What it reads is streamed: memory grows with the number
// of exceptions, by a few bytes for each, in Check alone. A Store may be used by several
// goroutines at once when its io.ReaderAt allows that; a Writer is for one.
//
// # Format
//
// As in drivers/md/dm-snap-persistent.c. Everything is little endian, in chunks, whose size
// is a power of two from one sector (512 bytes) to 1 GiB. Chunk 0 is the header, of which
// the first 16 bytes count:
//
//	off  size
//	  0    4  magic 0x70416e53, "SnAp"
//	  4    4  valid: 1, or 0 when the snapshot was given up (no room left, or an error)
//	  8    4  version, 1
//	 12    4  chunk size in sectors
//
// Behind it areas follow: one chunk of exceptions, then a chunk of data for each of them.
// An area has N = chunk size / 16 exceptions, and area A begins at chunk 1 + A × (N + 1).
//
//	off  size
//	  0    8  old: the chunk of the origin
//	  8    8  new: the chunk of the store with its data; 0 ends the list
//
// The list ends at the first exception that is zero. Behind it the rest of its area is zero,
// since the kernel clears an area before the one in front of it is full; what lies in later
// areas is of an older store, and means nothing. The kernel gives out the data chunks
// in their order, leaving none out (from Linux 3.14 on; a crash of an older one may), and a
// merge takes exceptions away from the end. So the exceptions of a sound store have the first
// data chunks, each once; an exception that lost or won a bit in "new" shows. Nothing shows a wrong bit in "old" or in the data, unless two
// exceptions then have the same old chunk or it lies behind the origin: the format has no
// checksums.
//
// The last chunk of an origin may be short; its data chunk is whole.
package snapstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"tidemark/block"
)

// SectorSize is the unit of chunk sizes in the format, in bytes.
const SectorSize = 512

const (
	magic          = 0x70416e53 // SNAP_MAGIC
	version        = 1          // SNAPSHOT_DISK_VERSION
	headerSize     = 16
	exceptionSize  = 16
	headerChunks   = 1 // NUM_SNAPSHOT_HDR_CHUNKS
	maxChunkSize   = 1 << 30
	pieceSize      = 256 << 10 // what is read of a large area at once, in bytes
	maxOriginBytes = 1 << 62   // no device is larger, and no sum of ours overflows
)

var (
	// ErrNotStore says that there is no store: another content, or none.
	ErrNotStore = errors.New("not a store of dm-snapshot")
	// ErrNewer says that a store has a version that this package does not know.
	ErrNewer = errors.New("the store is newer than this program")
	// ErrDamaged says that a store contradicts itself, or was cut off.
	ErrDamaged = errors.New("the store is damaged")
	// ErrInvalid says that the kernel gave the snapshot up: exceptions are missing.
	ErrInvalid = errors.New("the snapshot is invalid")
	// ErrOverflowed says that it did so with no room left. It wraps ErrInvalid. A store that
	// has room may have overflowed, too: chunks that were being copied then are not in it.
	ErrOverflowed = fmt.Errorf("%w: it overflowed", ErrInvalid)
)

// Exception says that a chunk of the store belongs at a chunk of the origin. Both are
// numbers of chunks.
type Exception struct{ Old, New uint64 }

// Store is an exception store that is open for reading.
type Store struct {
	r     io.ReaderAt
	size  int64
	chunk int64
	valid bool
}

// Open reads and checks the header of the store in the first size bytes of r. The error
// wraps ErrNotStore, ErrNewer, ErrDamaged, or that of r. Whether the snapshot is valid is
// told by Valid.
//
// Reads are of whole sectors, into memory aligned to 4096 bytes, so that r may be opened
// with O_DIRECT: while a snapshot is live the kernel writes past the page cache.
func Open(r io.ReaderAt, size int64) (*Store, error) {
	if size < SectorSize {
		return nil, fmt.Errorf("snapstore: %w: it has %d bytes", ErrNotStore, size)
	}
	buf := block.AlignedBuffer(SectorSize)
	if err := readFull(r, buf, 0); err != nil {
		return nil, fmt.Errorf("snapstore: header at byte 0: %w", err)
	}
	s := &Store{r: r, size: size}
	if err := s.readHeader(buf[:headerSize]); err != nil {
		return nil, fmt.Errorf("snapstore: header at byte 0: %w", err)
	}
	return s, nil
}

func (s *Store) readHeader(b []byte) error {
	le := binary.LittleEndian
	switch got := le.Uint32(b); {
	case got == 0:
		return fmt.Errorf("%w: its magic is zero, as where a store is new or was dropped", ErrNotStore)
	case got != magic:
		return fmt.Errorf("%w: magic %#08x, want %#08x", ErrNotStore, got, uint32(magic))
	}
	switch got := le.Uint32(b[8:]); {
	case got > version:
		return fmt.Errorf("%w: version %d, known is %d", ErrNewer, got, version)
	case got < version:
		return fmt.Errorf("%w: version %d", ErrDamaged, got)
	}
	valid := le.Uint32(b[4:])
	if valid > 1 {
		return fmt.Errorf("%w: valid is %d, and should be 0 or 1", ErrDamaged, valid)
	}
	chunk := int64(le.Uint32(b[12:])) * SectorSize
	if chunk == 0 || chunk&(chunk-1) != 0 || chunk > maxChunkSize {
		return fmt.Errorf("%w: chunks of %d sectors", ErrDamaged, chunk/SectorSize)
	}
	s.valid, s.chunk = valid == 1, chunk
	return nil
}

// ChunkSize returns the size of a chunk in bytes. It is what the store says, whatever
// table its snapshot was made with.
func (s *Store) ChunkSize() int64 { return s.chunk }

// Size returns the size of the store's device or file in bytes.
func (s *Store) Size() int64 { return s.size }

// Valid returns nil for a snapshot that is valid. The error wraps ErrInvalid, and
// ErrOverflowed where no room is left in the store, which is why a kernel gives up mostly.
func (s *Store) Valid() error {
	if s.valid {
		return nil
	}
	sum, err := s.Check(CheckOptions{})
	if err == nil && sum.Free == 0 {
		return fmt.Errorf("snapstore: %w: all of its %d bytes are used, and chunks for which there was no room are missing", ErrOverflowed, s.size)
	}
	return fmt.Errorf("snapstore: %w: the kernel gave it up after an error, or with no room for all that it was copying, and chunks are missing", ErrInvalid)
}

// perArea is the number of exceptions of an area.
func (s *Store) perArea() int64 { return s.chunk / exceptionSize }

// area returns at which chunk an area begins.
func (s *Store) area(n int64) int64 { return headerChunks + n*(s.perArea()+1) }

// data returns the data chunk that the kernel gives to the nth exception.
func (s *Store) data(n int64) int64 { return s.area(n/s.perArea()) + 1 + n%s.perArea() }

// fits reports whether there is room for the nth exception. With the last one of an area the
// next begins, which ends the list.
func (s *Store) fits(n int64) bool { return s.holds(s.data(n)) && s.holds(s.area((n+1)/s.perArea())) }

// holds reports whether the store has the whole of a chunk.
func (s *Store) holds(chunk int64) bool { return chunk >= 0 && chunk < s.size/s.chunk }

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
