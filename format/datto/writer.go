package datto

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Writer writes a COW file: blocks in ascending order, the header last, so that a file that is
// not whole is none. What is not written must read as zeros.
type Writer struct {
	w       io.WriterAt
	l       layout
	header  Header
	section []byte
	at      int64 // the first entry of the section
	next    int64 // the least block that may come
}

// NewWriter returns a Writer of the COW file of a device of that size in bytes. Of the
// header UUID, Sequence, Version and IndexOnly are taken.
func NewWriter(w io.WriterAt, device int64, h Header) (*Writer, error) {
	if device <= 0 || device > maxDevice || h.Version > version {
		return nil, fmt.Errorf("datto: no COW file of a device of %d bytes, version %d", device, h.Version)
	}
	p := &Writer{w: w, l: layoutOf(device), header: h, section: make([]byte, sectionSize)}
	p.header.Clean, p.header.Changed, p.header.NextFree = true, 0, uint64(p.l.data()/BlockSize)
	if _, err := w.WriteAt(make([]byte, BlockSize), 0); err != nil {
		return nil, fmt.Errorf("datto: header at byte 0: %w", err)
	}
	return p, nil
}

// Add says that a block of the device changed. Data is what it held, BlockSize bytes, and nil
// in a file of the incremental mode. A short last block for which the index has no entry is
// left out: readers take it as changed.
func (p *Writer) Add(n int64, data []byte) error {
	switch {
	case n < p.next || n >= p.l.blocks:
		return fmt.Errorf("datto: block %d is not behind the one before, or behind the end of the device", n)
	case (data == nil) != p.header.IndexOnly || data != nil && len(data) != BlockSize:
		return errors.New("datto: data goes into a file of the snapshot mode, and there a whole block for each entry")
	case n >= p.l.entries:
		return nil
	}
	p.next = n + 1
	if at := n / sectionEntries * sectionEntries; at != p.at {
		if err := p.flush(); err != nil {
			return err
		}
		p.at = at
	}
	value := uint64(1)
	if data != nil {
		value = p.header.NextFree
		if _, err := p.w.WriteAt(data, int64(value)*BlockSize); err != nil {
			return fmt.Errorf("datto: block %d at byte %d: %w", n, value*BlockSize, err)
		}
		p.header.NextFree++
	}
	binary.LittleEndian.PutUint64(p.section[(n-p.at)*entrySize:], value)
	p.header.Changed++
	return nil
}

func (p *Writer) flush() error {
	if _, err := p.w.WriteAt(p.section, BlockSize+p.at*entrySize); err != nil {
		return fmt.Errorf("datto: index at byte %d: %w", BlockSize+p.at*entrySize, err)
	}
	clear(p.section)
	return nil
}

// End makes what was added a COW file, and returns its size in bytes, which the caller gives
// it. sync makes what was written durable; it is called before and after the header is
// written. No method may be called after it.
func (p *Writer) End(sync func() error) (size int64, err error) {
	size = int64(p.header.NextFree) * BlockSize
	if p.l.entries > 0 {
		if err := p.flush(); err != nil {
			return 0, err
		}
	}
	if err := sync(); err != nil {
		return 0, fmt.Errorf("datto: %w", err)
	}
	if p.header.Version == 0 {
		p.header.Changed = 0
	}
	p.header.Size = uint64(size)
	if _, err := p.w.WriteAt(p.header.encode(), 0); err != nil {
		return 0, fmt.Errorf("datto: header at byte 0: %w", err)
	}
	if err := sync(); err != nil {
		return 0, fmt.Errorf("datto: %w", err)
	}
	return size, nil
}

func (h Header) encode() []byte {
	b := make([]byte, headerSize)
	le := binary.LittleEndian
	le.PutUint32(b, magic)
	flags := uint32(0)
	if h.Clean {
		flags |= flagClean
	}
	if h.IndexOnly {
		flags |= flagIndexOnly
	}
	le.PutUint32(b[4:], flags)
	le.PutUint64(b[8:], h.NextFree)
	le.PutUint64(b[16:], h.Size)
	le.PutUint64(b[24:], h.Sequence)
	copy(b[32:], h.UUID[:])
	le.PutUint64(b[48:], h.Version)
	le.PutUint64(b[56:], h.Changed)
	return b
}
