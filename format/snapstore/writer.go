package snapstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// ErrFull says that a store has no room for one more exception.
var ErrFull = errors.New("the store is full")

// Writer writes a store: exceptions and their data as they come, the header last, so that
// a store that is not whole is none.
type Writer struct {
	s    Store // where things lie
	w    io.WriterAt
	n    int64  // exceptions
	area []byte // of the area that is being filled
}

// NewWriter returns a Writer for the first size bytes of w, which hold no store from
// now on. chunk is a power of two from SectorSize to 1 GiB.
func NewWriter(w io.WriterAt, size, chunk int64) (*Writer, error) {
	if chunk < SectorSize || chunk&(chunk-1) != 0 || chunk > maxChunkSize {
		return nil, fmt.Errorf("snapstore: chunks of %d bytes cannot be", chunk)
	}
	p := &Writer{s: Store{size: size, chunk: chunk}, w: w}
	if !p.s.holds(p.s.area(0)) {
		return nil, fmt.Errorf("snapstore: %d bytes: %w: header and first area take two chunks of %d", size, ErrFull, chunk)
	}
	if _, err := w.WriteAt(make([]byte, SectorSize), 0); err != nil {
		return nil, fmt.Errorf("snapstore: header at byte 0: %w", err)
	}
	p.area = make([]byte, chunk)
	return p, nil
}

// SizeFor returns how many bytes a store takes that has room for n exceptions.
func SizeFor(n, chunk int64) int64 {
	s := Store{chunk: chunk}
	return (s.area(n/s.perArea()) + n%s.perArea() + 1) * chunk
}

// Add gives the store one more exception: data is the content of chunk old. What it lacks
// of a whole chunk, because the origin ends in it, is zeros. The error wraps ErrFull when
// the store has no room for it.
func (p *Writer) Add(old uint64, data []byte) error {
	if int64(len(data)) > p.s.chunk {
		return fmt.Errorf("snapstore: chunk %d: %d bytes do not fit in it", old, len(data))
	}
	at := p.s.data(p.n)
	if !p.s.fits(p.n) {
		return fmt.Errorf("snapstore: chunk %d: %w", old, ErrFull)
	}
	if short := p.s.chunk - int64(len(data)); short > 0 {
		data = append(append(make([]byte, 0, p.s.chunk), data...), make([]byte, short)...)
	}
	if _, err := p.w.WriteAt(data, at*p.s.chunk); err != nil {
		return fmt.Errorf("snapstore: chunk %d at byte %d: %w", old, at*p.s.chunk, err)
	}
	i := p.n % p.s.perArea() * exceptionSize
	binary.LittleEndian.PutUint64(p.area[i:], old)
	binary.LittleEndian.PutUint64(p.area[i+8:], uint64(at))
	p.n++
	if p.n%p.s.perArea() == 0 {
		if err := p.writeArea(p.n/p.s.perArea() - 1); err != nil {
			return err
		}
		clear(p.area)
	}
	return nil
}

func (p *Writer) writeArea(n int64) error {
	at := p.s.area(n) * p.s.chunk
	if _, err := p.w.WriteAt(p.area, at); err != nil {
		return fmt.Errorf("snapstore: area %d at byte %d: %w", n, at, err)
	}
	return nil
}

// End makes what was added a store. sync makes what was written durable; it is called before
// and after the header is written. End must be called once, and no method after it.
func (p *Writer) End(sync func() error) error {
	if err := p.writeArea(p.n / p.s.perArea()); err != nil {
		return err
	}
	if err := sync(); err != nil {
		return fmt.Errorf("snapstore: %w", err)
	}
	header := make([]byte, SectorSize)
	for i, v := range []uint32{magic, 1, version, uint32(p.s.chunk / SectorSize)} {
		binary.LittleEndian.PutUint32(header[4*i:], v)
	}
	if _, err := p.w.WriteAt(header, 0); err != nil {
		return fmt.Errorf("snapstore: header at byte 0: %w", err)
	}
	if err := sync(); err != nil {
		return fmt.Errorf("snapstore: %w", err)
	}
	return nil
}
