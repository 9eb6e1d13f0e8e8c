package sidecar

import (
	"encoding/binary"
	"fmt"
	"math"

	"tidemark/extent"
)

const (
	journalMagic  = "TMJRNL\r\n"
	journalHeader = 64
	recordHeader  = 40

	// MaxData bounds the data of one record, in bytes.
	MaxData = 16 << 20
)

const (
	kindData = "DATA"
	kindZero = "ZERO"
	kindDone = "DONE"
)

// JournalHeader says what a journal is an update of.
type JournalHeader struct {
	ID        ID
	BlockSize int64  // bytes
	Update    uint64 // number of the update
	Size      int64  // of the target after the update, bytes
}

func (h JournalHeader) encode() []byte {
	b := make([]byte, journalHeader)
	copy(b, journalMagic)
	binary.LittleEndian.PutUint32(b[8:], version)
	binary.LittleEndian.PutUint32(b[12:], uint32(h.BlockSize))
	copy(b[16:], h.ID[:])
	binary.LittleEndian.PutUint64(b[32:], h.Update)
	binary.LittleEndian.PutUint64(b[40:], uint64(h.Size))
	sum := checksum(b[:48])
	copy(b[48:], sum[:])
	return b
}

func decodeJournalHeader(b []byte) (JournalHeader, error) {
	if string(b[:8]) != journalMagic {
		return JournalHeader{}, fmt.Errorf("journal: magic %q: %w", b[:8], ErrNotOurs)
	}
	if got := checksum(b[:48]); got != Sum(b[48:64]) {
		return JournalHeader{}, fmt.Errorf("journal: header checksum %x, want %x: %w", b[48:64], got, ErrDamaged)
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v > version {
		return JournalHeader{}, fmt.Errorf("journal: version %d: %w", v, ErrNewer)
	}
	if err := checkBlockSize(binary.LittleEndian.Uint32(b[12:])); err != nil {
		return JournalHeader{}, fmt.Errorf("journal: %w", err)
	}
	size := binary.LittleEndian.Uint64(b[40:])
	if size > math.MaxInt64-MaxData {
		return JournalHeader{}, fmt.Errorf("journal: target size %d: %w", size, ErrDamaged)
	}
	return JournalHeader{
		ID:        ID(b[16:32]),
		BlockSize: int64(binary.LittleEndian.Uint32(b[12:])),
		Update:    binary.LittleEndian.Uint64(b[32:]),
		Size:      int64(size),
	}, nil
}

// record is the head of one record, the table of the package comment in words.
type record struct {
	kind string
	sums int   // how many checksums follow
	off  int64 // or, of DONE, the number of records before it
	len  int64
	sum  Sum
}

func (r record) encode(sums []Sum, chain []byte) ([]byte, Sum) {
	b := make([]byte, recordHeader, recordHeader+len(sums)*SumSize)
	copy(b, r.kind)
	binary.LittleEndian.PutUint32(b[4:], uint32(len(sums)))
	binary.LittleEndian.PutUint64(b[8:], uint64(r.off))
	binary.LittleEndian.PutUint64(b[16:], uint64(r.len))
	for i := range sums {
		b = append(b, sums[i][:]...)
	}
	sum := checksum(b[:24], b[recordHeader:], chain)
	copy(b[24:], sum[:])
	return b, sum
}

// decodeRecord checks everything that can be known from the head alone.
func decodeRecord(b []byte, h JournalHeader) (record, error) {
	r := record{
		kind: string(b[:4]),
		off:  int64(binary.LittleEndian.Uint64(b[8:])),
		len:  int64(binary.LittleEndian.Uint64(b[16:])),
		sum:  Sum(b[24:40]),
	}
	wantSums := int64(0)
	switch r.kind {
	case kindData:
		if r.len > MaxData {
			return record{}, fmt.Errorf("%d bytes of data: at most %d: %w", r.len, MaxData, ErrDamaged)
		}
		wantSums = Blocks(max(r.len, 0), h.BlockSize)
		fallthrough
	case kindZero:
		if err := checkPlace(extent.Extent{Off: r.off, Len: r.len}, h); err != nil {
			return record{}, err
		}
	case kindDone:
		if r.len < 0 || r.len > MaxState {
			return record{}, fmt.Errorf("state of %d bytes: at most %d: %w", r.len, MaxState, ErrDamaged)
		}
	default:
		return record{}, fmt.Errorf("kind %q: %w", r.kind, ErrDamaged)
	}
	if n := binary.LittleEndian.Uint32(b[4:]); int64(n) != wantSums {
		return record{}, fmt.Errorf("%d checksums, want %d: %w", n, wantSums, ErrDamaged)
	}
	r.sums = int(wantSums)
	return r, nil
}

// checkPlace refuses an extent that is not made of whole blocks of the target.
func checkPlace(e extent.Extent, h JournalHeader) error {
	if !e.Valid() || e.Empty() || e.End() > h.Size {
		return fmt.Errorf("extent %v outside the target of %d bytes: %w", e, h.Size, ErrDamaged)
	}
	if e.Off%h.BlockSize != 0 || (e.Len%h.BlockSize != 0 && e.End() != h.Size) {
		return fmt.Errorf("extent %v is not made of blocks of %d bytes: %w", e, h.BlockSize, ErrDamaged)
	}
	return nil
}
