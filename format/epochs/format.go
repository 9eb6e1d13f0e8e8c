// Package epochs reads and writes the file of one closed span of tracking
// epochs: which blocks of a disk changed in it.
//
// A file is a header of 112 bytes and a payload. All numbers are little endian
// and unsigned. Offsets and sizes of the header are bytes; the payload counts in
// blocks of the granularity.
//
//	offset size type     name        meaning                          valid values
//	     0    8 bytes    magic       names the format                 "TMCHANGE"
//	     8    4 uint32   version     of this table                    1
//	    12    4 uint32   flags       features the reader must know    0
//	    16    8 bytes    generation  of the tracker that wrote it     any
//	    24    8 uint64   from        first epoch of the span          any
//	    32    8 uint64   to          epoch after the last             > from
//	    40    8 uint64   diskSize    size of the whole disk           1 … 2^63-1
//	    48    8 uint64   granularity bytes in a block                 power of two, 512 … 2^30
//	    56    8 uint64   count       extents in the payload           ≤ 2^27, ≤ half the blocks, rounded up
//	    64    8 uint64   rawLen      payload bytes before compression 2 … 18 for each extent
//	    72    8 uint64   storedLen   payload bytes in the file        file size - 112
//	    80   32 bytes    checksum    BLAKE3-256 of bytes 0…79 and of the payload as stored
//	   112    …          payload     empty when count is 0, else Zstandard (window ≤ 1 MiB)
//
// The offsets of magic, version, storedLen and checksum are the same in every
// version, so damage is told from news.
//
// The payload is, for each extent in ascending order, two varints in their
// shortest form (as encoding/binary's Uvarint): the gap in blocks since the end
// of the extent before (since 0 for the first; at least 1 for all others), and
// the length in blocks, at least 1. The last block of a disk may be short: an
// extent that reaches it ends at diskSize.
//
// The package refuses what is not such a file (ErrNotEpochs), one that is cut,
// altered or contradicts itself (ErrDamaged), and one of a later version or with
// unknown flags (ErrNewer). It opens no paths. Its functions may be called from
// several goroutines at once; each call takes memory in proportion to the
// extents really present, whatever the header says.
package epochs

import (
	"encoding/binary"
	"encoding/hex"
	"errors"

	"tidemark/extent"
)

const (
	magic         = "TMCHANGE"
	version       = 1
	headerSize    = 112
	checksumOff   = 80
	windowSize    = 1 << 20 // of the Zstandard frame: bounds the reader's memory
	minVarints    = 2       // bytes of the smallest extent
	maxVarints    = 18      // bytes of the largest: 2^63-1 takes nine bytes
	generationLen = 16      // hex digits

	// MinGranularity is the smallest block, one sector.
	MinGranularity = 512
	// MaxGranularity is the largest block, in bytes.
	MaxGranularity = 1 << 30
	// MaxExtents is the largest number of extents in a file: every other block
	// of a bitmap of 32 MiB, the largest that tracking uses by default.
	MaxExtents = 1 << 27
)

var (
	// ErrNotEpochs says that the input is no file of this format.
	ErrNotEpochs = errors.New("not an epochs file")
	// ErrDamaged says that the file is cut short, altered or contradicts itself.
	ErrDamaged = errors.New("damaged epochs file")
	// ErrNewer says that a later version of tidemark wrote the file.
	ErrNewer = errors.New("epochs file of a newer version")
)

// File is what one file says.
type File struct {
	Generation  string     // of the tracker: 16 lower-case hex digits
	From, To    uint64     // epochs [From, To)
	DiskSize    int64      // bytes of the whole disk
	Granularity int64      // bytes in a block
	Set         extent.Set // bytes of the disk, whole blocks (the last may be short)
}

func blockCount(size, granularity int64) int64 {
	return (size-1)/granularity + 1
}

// header is the start of a file, as in the table above.
type header [headerSize]byte

func (h *header) magic() string       { return string(h[0:8]) }
func (h *header) version() uint32     { return binary.LittleEndian.Uint32(h[8:]) }
func (h *header) flags() uint32       { return binary.LittleEndian.Uint32(h[12:]) }
func (h *header) generation() string  { return hex.EncodeToString(h[16:24]) }
func (h *header) from() uint64        { return h.u64(24) }
func (h *header) to() uint64          { return h.u64(32) }
func (h *header) diskSize() uint64    { return h.u64(40) }
func (h *header) granularity() uint64 { return h.u64(48) }
func (h *header) count() uint64       { return h.u64(56) }
func (h *header) rawLen() uint64      { return h.u64(64) }
func (h *header) storedLen() uint64   { return h.u64(72) }
func (h *header) checksum() []byte    { return h[checksumOff:headerSize] }
func (h *header) checked() []byte     { return h[:checksumOff] }

func (h *header) u64(off int) uint64 { return binary.LittleEndian.Uint64(h[off:]) }

func (h *header) setU32(off int, v uint32) { binary.LittleEndian.PutUint32(h[off:], v) }
func (h *header) setU64(off int, v uint64) { binary.LittleEndian.PutUint64(h[off:], v) }
