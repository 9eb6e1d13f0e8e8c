package sidecar

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	sumsMagic  = "TMSUMS\r\n"
	sumsHeader = 4096 // bytes before the first checksum
)

// SumsFile is what Sums needs of the file that holds them.
type SumsFile interface {
	io.ReaderAt
	io.WriterAt
}

// Sums is the open file of a mirror's checksums.
type Sums struct {
	f         SumsFile
	blockSize int64
}

// CreateSums writes the header of an empty sums file: every block counts as zero.
func CreateSums(f SumsFile, id ID, blockSize int64) (*Sums, error) {
	if blockSize > MaxBlock {
		return nil, fmt.Errorf("sums: block size %d: at most %d", blockSize, MaxBlock)
	}
	if err := checkBlockSize(uint32(blockSize)); err != nil {
		return nil, fmt.Errorf("sums: %w", err)
	}
	head := make([]byte, sumsHeader)
	copy(head, sumsMagic)
	binary.LittleEndian.PutUint32(head[8:], version)
	binary.LittleEndian.PutUint32(head[12:], uint32(blockSize))
	copy(head[16:], id[:])
	sum := checksum(head[:32])
	copy(head[32:], sum[:])
	if _, err := f.WriteAt(head, 0); err != nil {
		return nil, fmt.Errorf("sums: %w", err)
	}
	return &Sums{f: f, blockSize: blockSize}, nil
}

// OpenSums checks the header against the mirror that the file should belong to.
// The error wraps ErrNotOurs, ErrDamaged or ErrNewer.
func OpenSums(f SumsFile, id ID, blockSize int64) (*Sums, error) {
	head := make([]byte, 48)
	if _, err := f.ReadAt(head, 0); errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("sums: file shorter than its header: %w", ErrDamaged)
	} else if err != nil {
		return nil, fmt.Errorf("sums: %w", err)
	}
	if string(head[:8]) != sumsMagic {
		return nil, fmt.Errorf("sums: magic %q: %w", head[:8], ErrNotOurs)
	}
	if got := checksum(head[:32]); got != Sum(head[32:48]) {
		return nil, fmt.Errorf("sums: header checksum %x, want %x: %w", head[32:48], got, ErrDamaged)
	}
	if v := binary.LittleEndian.Uint32(head[8:]); v > version {
		return nil, fmt.Errorf("sums: version %d: %w", v, ErrNewer)
	}
	if got := binary.LittleEndian.Uint32(head[12:]); int64(got) != blockSize {
		return nil, fmt.Errorf("sums: block size %d, the mirror has %d: %w", got, blockSize, ErrNotOurs)
	}
	if ID(head[16:32]) != id {
		return nil, fmt.Errorf("sums: they belong to mirror %x, not %x: %w", head[16:32], id, ErrNotOurs)
	}
	return &Sums{f: f, blockSize: blockSize}, nil
}

// Read fills sums with the checksums of the blocks from the one at off (bytes).
// Blocks behind the end of the file are zero.
func (s *Sums) Read(sums []Sum, off int64) error {
	buf := make([]byte, len(sums)*SumSize)
	n, err := s.f.ReadAt(buf, s.position(off))
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("sums: read those of the blocks at %d: %w", off, err)
	}
	clear(buf[n:])
	for i := range sums {
		sums[i] = Sum(buf[i*SumSize:])
	}
	return nil
}

// Write stores the checksums of the blocks from the one at off (bytes).
func (s *Sums) Write(sums []Sum, off int64) error {
	buf := make([]byte, 0, len(sums)*SumSize)
	for i := range sums {
		buf = append(buf, sums[i][:]...)
	}
	if _, err := s.f.WriteAt(buf, s.position(off)); err != nil {
		return fmt.Errorf("sums: write those of the blocks at %d: %w", off, err)
	}
	return nil
}

// FileSize returns the size in bytes of the sums file of a target of size bytes.
func (s *Sums) FileSize(size int64) int64 {
	return sumsHeader + Blocks(size, s.blockSize)*SumSize
}

func (s *Sums) position(off int64) int64 { return sumsHeader + off/s.blockSize*SumSize }
