// Package sums is the format of the file that holds a checksum for each block of an image
// or device.
//
// For most uses, Of makes the checksum of a block, Open or Create opens the file, and
// Read and Write move checksums. All integers are little endian. A checksum is the first
// 16 bytes of the BLAKE3 hash. The checksum of a block of zeros is 16 zero bytes, so that
// those of unused space are a hole in the file.
//
//	offset  size  meaning
//	0       8     magic "TMSUMS\r\n"
//	8       4     version, 1
//	12      4     block size in bytes, a power of two from 4096 to 16 MiB
//	16      16    id of the mirror
//	32      16    first 16 bytes of the BLAKE3 hash of bytes 0 to 31
//	48      4048  zeros
//	4096    16×n  the checksum of each block; the last block may be short
//
// The package opens no file. It refuses a header that is damaged, that belongs to another
// mirror, or that a newer tidemark wrote, each with an error of its own. A Sums may be used
// by several goroutines at once on blocks that do not overlap.
package sums

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"

	"github.com/zeebo/blake3"

	"tidemark/block"
	"tidemark/extent"
)

var (
	// ErrNotOurs says that the bytes are not of this format, or of another mirror.
	ErrNotOurs = errors.New("not the checksums of this mirror")
	// ErrDamaged says that the bytes were of this format once.
	ErrDamaged = errors.New("the checksums of the mirror are damaged")
	// ErrNewer says that a newer tidemark wrote the bytes.
	ErrNewer = errors.New("a newer tidemark wrote the checksums of the mirror")
)

const (
	magic   = "TMSUMS\r\n"
	version = 1
	header  = 4096 // bytes before the first checksum
	sumSize = 16   // bytes of a checksum
	// minBlock and maxBlock bound the block size in bytes.
	minBlock = 4096
	maxBlock = 16 << 20
)

// Sum is the checksum of one block.
type Sum [sumSize]byte

// Of returns the checksum of a block, which is zero for a block of zeros.
func Of(b []byte) Sum {
	if block.IsZero(b) {
		return Sum{}
	}
	return hash(b)
}

// hash is the checksum of bytes among which zeros have no special place.
func hash(b []byte) Sum {
	full := blake3.Sum256(b)
	return Sum(full[:sumSize])
}

// Blocks returns how many blocks of blockSize bytes there are in size bytes; the last one
// may be short.
func Blocks(size, blockSize int64) int64 {
	n := size / blockSize
	if size%blockSize != 0 {
		n++
	}
	return n
}

// File is what Sums needs of the file that holds them.
type File interface {
	io.ReaderAt
	io.WriterAt
}

// Sparse is a File, or what has the blocks, that knows its holes.
type Sparse interface {
	// Data returns the parts of e (bytes) that may hold anything but zeros.
	Data(e extent.Extent) (extent.Set, error)
}

// DataOf returns the parts of e that may hold anything but zeros: all of it where x is not
// Sparse.
func DataOf(x any, e extent.Extent) (extent.Set, error) {
	if s, ok := x.(Sparse); ok {
		return s.Data(e)
	}
	return extent.NewSet(e), nil
}

// Sums is the open file of the checksums of blocks.
type Sums struct {
	f         File
	blockSize int64
}

// Create writes the header of an empty file: every block counts as zeros.
func Create(f File, id [16]byte, blockSize int64) (*Sums, error) {
	if blockSize < minBlock || blockSize > maxBlock || bits.OnesCount64(uint64(blockSize)) != 1 {
		return nil, fmt.Errorf("sums: block size %d: want a power of two from %d to %d", blockSize, minBlock, maxBlock)
	}
	head := make([]byte, header)
	copy(head, magic)
	binary.LittleEndian.PutUint32(head[8:], version)
	binary.LittleEndian.PutUint32(head[12:], uint32(blockSize))
	copy(head[16:], id[:])
	sum := hash(head[:32])
	copy(head[32:], sum[:])
	if _, err := f.WriteAt(head, 0); err != nil {
		return nil, fmt.Errorf("sums: %w", err)
	}
	return &Sums{f: f, blockSize: blockSize}, nil
}

// Open checks the header against the mirror that the file should belong to.
// The error wraps ErrNotOurs, ErrDamaged or ErrNewer.
func Open(f File, id [16]byte, blockSize int64) (*Sums, error) {
	head := make([]byte, 48)
	if _, err := f.ReadAt(head, 0); errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("sums: file shorter than its header: %w", ErrDamaged)
	} else if err != nil {
		return nil, fmt.Errorf("sums: %w", err)
	}
	if string(head[:8]) != magic {
		return nil, fmt.Errorf("sums: magic %q: %w", head[:8], ErrNotOurs)
	}
	if got := hash(head[:32]); got != Sum(head[32:48]) {
		return nil, fmt.Errorf("sums: header checksum %x, want %x: %w", head[32:48], got, ErrDamaged)
	}
	if v := binary.LittleEndian.Uint32(head[8:]); v > version {
		return nil, fmt.Errorf("sums: version %d: %w", v, ErrNewer)
	}
	if got := binary.LittleEndian.Uint32(head[12:]); int64(got) != blockSize {
		return nil, fmt.Errorf("sums: block size %d, the mirror has %d: %w", got, blockSize, ErrNotOurs)
	}
	if [16]byte(head[16:32]) != id {
		return nil, fmt.Errorf("sums: they belong to mirror %x, not %x: %w", head[16:32], id, ErrNotOurs)
	}
	return &Sums{f: f, blockSize: blockSize}, nil
}

// Read fills sums with the checksums of the blocks from the one at off (bytes).
// Blocks behind the end of the file are zero.
func (s *Sums) Read(sums []Sum, off int64) error {
	buf := make([]byte, len(sums)*sumSize)
	n, err := s.f.ReadAt(buf, s.position(off))
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("sums: read those of the blocks at %d: %w", off, err)
	}
	clear(buf[n:])
	for i := range sums {
		sums[i] = Sum(buf[i*sumSize:])
	}
	return nil
}

// Wrong returns the blocks of e (bytes, from the start of a block) that are not what the
// checksums say when data is their content; nil stands for zeros.
func (s *Sums) Wrong(e extent.Extent, data []byte) (all []extent.Extent, err error) {
	want := make([]Sum, Blocks(e.Len, s.blockSize))
	if err := s.Read(want, e.Off); err != nil {
		return nil, err
	}
	for i := range want {
		at := int64(i) * s.blockSize
		end := min(at+s.blockSize, e.Len)
		is := Sum{}
		if data != nil {
			is = Of(data[at:end])
		}
		if is != want[i] {
			all = append(all, extent.Extent{Off: e.Off + at, Len: end - at})
		}
	}
	return all, nil
}

// Write stores the checksums of the blocks from the one at off (bytes).
func (s *Sums) Write(sums []Sum, off int64) error {
	buf := make([]byte, 0, len(sums)*sumSize)
	for i := range sums {
		buf = append(buf, sums[i][:]...)
	}
	if _, err := s.f.WriteAt(buf, s.position(off)); err != nil {
		return fmt.Errorf("sums: write those of the blocks at %d: %w", off, err)
	}
	return nil
}

// Data returns the parts of e (bytes of the blocks) where a checksum may be that of anything
// but zeros: the rest is holes of the file.
func (s *Sums) Data(e extent.Extent) (extent.Set, error) {
	first := e.Off / s.blockSize
	n := Blocks(e.End()-first*s.blockSize, s.blockSize)
	held, err := DataOf(s.f, extent.Extent{Off: header + first*sumSize, Len: n * sumSize})
	if err != nil {
		return held, fmt.Errorf("sums: %w", err)
	}
	var b extent.Builder
	for _, h := range held.Extents() {
		from, to := (h.Off-header)/sumSize, Blocks(h.End()-header, sumSize)
		b.Add(extent.Extent{Off: from * s.blockSize, Len: (to - from) * s.blockSize})
	}
	return b.Set().Clip(e), nil
}

// FileSize returns the size in bytes of the file for a target of that many bytes.
func (s *Sums) FileSize(of int64) int64 {
	return header + Blocks(of, s.blockSize)*sumSize
}

func (s *Sums) position(off int64) int64 { return header + off/s.blockSize*sumSize }
