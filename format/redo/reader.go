package redo

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"tidemark/block"
	"tidemark/extent"
)

// Reader reads a sealed journal.
type Reader struct {
	Header
	r      io.ReaderAt
	tables []int64 // offsets, in the order in which they were written
}

// NewReader opens a journal of size bytes and checks its tables. The error wraps
// ErrNotOurs, ErrDamaged or ErrNewer where it is not that of r. The data has not
// been checked then; see Verify.
func NewReader(r io.ReaderAt, size int64) (*Reader, error) {
	b := make([]byte, min(align, max(size, 0)))
	if err := readFull(r, b, 0); err != nil {
		return nil, fmt.Errorf("redo: header: %w", err)
	}
	h, err := decodeHeader(b, size)
	if err != nil {
		return nil, fmt.Errorf("redo: %w", err)
	}
	j := &Reader{Header: h, r: r}
	if err := j.findTables(); err != nil {
		return nil, fmt.Errorf("redo: %w", err)
	}
	if err := j.checkEntries(); err != nil {
		return nil, fmt.Errorf("redo: %w", err)
	}
	return j, nil
}

// findTables follows the tables from the last to the first.
func (j *Reader) findTables() error {
	var head [tableHead]byte
	below := j.length
	for at := j.lastTable; at != 0; {
		if at < align || at > below-tableHead || int64(len(j.tables)) == j.Header.tables {
			return fmt.Errorf("table at %d: out of place: %w", at, ErrDamaged)
		}
		if err := readFull(j.r, head[:], at); err != nil {
			return fmt.Errorf("table at %d: %w", at, err)
		}
		if string(head[:8]) != tableMagic {
			return fmt.Errorf("table at %d: magic %q: %w", at, head[:8], ErrDamaged)
		}
		j.tables = append(j.tables, at)
		below, at = at, int64(binary.LittleEndian.Uint64(head[8:]))
	}
	if n := int64(len(j.tables)); n != j.Header.tables {
		return fmt.Errorf("%d tables, want %d: %w", n, j.Header.tables, ErrDamaged)
	}
	for i, k := 0, len(j.tables)-1; i < k; i, k = i+1, k-1 {
		j.tables[i], j.tables[k] = j.tables[k], j.tables[i]
	}
	return nil
}

func (j *Reader) checkEntries() error {
	var last extent.Extent
	pass, data, n, ordered := uint32(0), int64(align), int64(0), true
	err := j.Each(func(e Entry) error {
		if err := e.check(j.Header, pass, data); err != nil {
			return fmt.Errorf("entry %d: %w", n, err)
		}
		ordered = ordered && (e.Pass > pass || e.Off >= last.End())
		n++
		pass, last = e.Pass, e.Extent
		if !e.Zero() {
			data = e.At + e.Len
		}
		return nil
	})
	if err == nil && n != j.Entries {
		err = fmt.Errorf("%d entries, want %d: %w", n, j.Entries, ErrDamaged)
	}
	if err != nil || ordered {
		return err
	}
	return j.checkOverlaps()
}

// checkOverlaps refuses entries of one pass that overlap: which of them holds would be
// anybody's guess.
func (j *Reader) checkOverlaps() error {
	var exts []extent.Extent
	pass := uint32(0)
	check := func() error {
		slices.SortFunc(exts, func(a, b extent.Extent) int { return cmp.Compare(a.Off, b.Off) })
		for i := 1; i < len(exts); i++ {
			if exts[i].Off < exts[i-1].End() {
				return fmt.Errorf("pass %d: %v and %v overlap: %w", pass, exts[i-1], exts[i], ErrDamaged)
			}
		}
		exts = exts[:0]
		return nil
	}
	err := j.Each(func(e Entry) error {
		if e.Pass != pass {
			if err := check(); err != nil {
				return err
			}
			pass = e.Pass
		}
		if n := len(exts); n > 0 && exts[n-1].End() == e.Off {
			exts[n-1].Len += e.Len
		} else {
			exts = append(exts, e.Extent)
		}
		return nil
	})
	return errors.Join(err, check())
}

// Blob returns the blob of the journal, nil when there is none. The error wraps
// ErrDamaged when it is not what was sealed.
func (j *Reader) Blob() ([]byte, error) {
	if j.blobAt == 0 {
		return nil, nil
	}
	b := make([]byte, j.blobLen)
	if err := readFull(j.r, b, j.blobAt); err != nil {
		return nil, fmt.Errorf("redo: blob at %d: %w", j.blobAt, err)
	}
	if got := crc32.Checksum(b, castagnoli); got != j.blobSum {
		return nil, fmt.Errorf("redo: blob at %d: checksum %08x, want %08x: %w", j.blobAt, got, j.blobSum, ErrDamaged)
	}
	return b, nil
}

// Each calls f for every entry, in the order in which they were written, and ends
// with the first error.
func (j *Reader) Each(f func(Entry) error) error {
	buf := make([]byte, min(maxTableLen, j.length))
	for _, at := range j.tables {
		b := buf[:min(int64(len(buf)), j.length-at)]
		if err := readFull(j.r, b, at); err != nil {
			return fmt.Errorf("table at %d: %w", at, err)
		}
		n := int(binary.LittleEndian.Uint32(b[16:]))
		if n == 0 || n > maxEntries || tableHead+n*entrySize > len(b) {
			return fmt.Errorf("table at %d: %d entries: %w", at, n, ErrDamaged)
		}
		b = b[:tableHead+n*entrySize]
		if got, want := tableSum(b), binary.LittleEndian.Uint32(b[20:]); got != want {
			return fmt.Errorf("table at %d: checksum %08x, want %08x: %w", at, want, got, ErrDamaged)
		}
		for e := tableHead; e < len(b); e += entrySize {
			if err := f(decodeEntry(b[e:])); err != nil {
				return err
			}
		}
	}
	return nil
}

// Verify reads the data of all entries, and the blob, and holds them against their
// checksums.
func (j *Reader) Verify() error {
	if _, err := j.Blob(); err != nil {
		return err
	}
	var buf []byte
	return j.Each(func(e Entry) error {
		if e.Zero() {
			return nil
		}
		if int64(len(buf)) < e.Len {
			buf = block.AlignedBuffer(int(e.Len))
		}
		if err := readFull(j.r, buf[:e.Len], e.At); err != nil {
			return fmt.Errorf("redo: data at %d: %w", e.At, err)
		}
		return e.Check(buf[:e.Len])
	})
}

// readFull reads len(p) bytes; a journal that ends on the way is damaged.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return fmt.Errorf("it ends at %d: %w", off+int64(n), ErrDamaged)
	}
	return err
}
