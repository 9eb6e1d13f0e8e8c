package redo

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"tidemark/block"
	"tidemark/extent"
)

const (
	bufferSize = 1 << 20 // a multiple of align
	// direct is the length in bytes from which data is not buffered: a copy of
	// it would cost more than a write of its own.
	direct = 128 << 10
)

// Writer writes a journal. Its caller makes it durable after Seal.
type Writer struct {
	w       io.WriterAt
	buf     []byte // of what is written at
	at      int64
	entries []Entry
	prev    int64 // end of the last entry
	head    Header
	err     error
}

// NewWriter returns a Writer. w is empty.
func NewWriter(w io.WriterAt) *Writer {
	return &Writer{w: w, at: align, buf: block.AlignedBuffer(bufferSize)[:0]}
}

// Len returns the length that the journal has now, in bytes.
func (w *Writer) Len() int64 { return w.at + int64(len(w.buf)) }

// Data appends that p comes to off (bytes) in the target, which is not before the
// end of what was appended last.
func (w *Writer) Data(off int64, p []byte) error {
	for len(p) > 0 && w.err == nil {
		n := min(len(p), maxData)
		e, err := w.place(off, n)
		if err == nil {
			e.Len += int64(n)
			e.sum = crc32.Update(e.sum, castagnoli, p[:n])
			w.prev = e.End()
			err = w.write(p[:n])
		}
		w.err = err
		off, p = off+int64(n), p[n:]
	}
	return w.err
}

// Zero appends that the target becomes zeros in e, which does not begin before
// the end of what was appended last.
func (w *Writer) Zero(e extent.Extent) error {
	if e.Empty() || w.err != nil {
		return w.err
	}
	if last := w.last(); last != nil && last.Zero() && last.End() == e.Off {
		last.Len += e.Len
	} else {
		w.err = w.add(Entry{Extent: e})
	}
	w.prev = e.End()
	return w.err
}

// place returns the entry to which n bytes of data at off belong: the last one, if
// they go on where it ends, or a new one.
func (w *Writer) place(off int64, n int) (*Entry, error) {
	last := w.last()
	if last != nil && !last.Zero() && last.End() == off && last.At+last.Len == w.Len() && last.Len+int64(n) <= maxData {
		return last, nil
	}
	if err := w.add(Entry{Extent: extent.Extent{Off: off}}); err != nil {
		return nil, err
	}
	pad := ((off-w.Len())%align + align) % align
	if err := w.write(make([]byte, pad)); err != nil {
		return nil, err
	}
	last = w.last()
	last.At = w.Len()
	return last, nil
}

func (w *Writer) last() *Entry {
	if len(w.entries) == 0 {
		return nil
	}
	return &w.entries[len(w.entries)-1]
}

func (w *Writer) add(e Entry) error {
	if e.Off < w.prev {
		return fmt.Errorf("redo: extent %v begins before %d, the end of the one before", e.Extent, w.prev)
	}
	if len(w.entries) == maxEntries {
		if err := w.table(); err != nil {
			return err
		}
	}
	w.entries = append(w.entries, e)
	return nil
}

// table writes the entries that there are.
func (w *Writer) table() error {
	if len(w.entries) == 0 {
		return nil
	}
	b := make([]byte, tableHead+len(w.entries)*entrySize)
	copy(b, tableMagic)
	binary.LittleEndian.PutUint64(b[8:], uint64(w.head.lastTable))
	binary.LittleEndian.PutUint32(b[16:], uint32(len(w.entries)))
	for i, e := range w.entries {
		e.encode(b[tableHead+i*entrySize:])
	}
	binary.LittleEndian.PutUint32(b[20:], tableSum(b))
	w.head.lastTable = w.Len()
	w.head.tables++
	w.head.Entries += int64(len(w.entries))
	w.entries = w.entries[:0]
	return w.write(b)
}

func tableSum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[:20], castagnoli), castagnoli, b[tableHead:])
}

// write appends p. What reaches w.w begins and ends at multiples of align, but for
// the end of the journal, and lies in memory at such a multiple where p does: that
// is what direct I/O demands.
func (w *Writer) write(p []byte) error {
	if whole := len(p) / align * align; len(w.buf)%align == 0 && whole >= direct {
		if err := w.flush(); err != nil {
			return err
		}
		n, err := w.w.WriteAt(p[:whole], w.at)
		w.at += int64(n)
		if err != nil {
			return err
		}
		p = p[whole:]
	}
	for len(p) > 0 {
		n := copy(w.buf[len(w.buf):cap(w.buf)], p)
		w.buf = w.buf[:len(w.buf)+n]
		p = p[n:]
		if len(w.buf) == cap(w.buf) {
			if err := w.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *Writer) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	n, err := w.w.WriteAt(w.buf, w.at)
	w.at += int64(n)
	w.buf = w.buf[:0]
	return err
}

// Seal completes the journal. before and after are the sizes of the target, in
// bytes.
func (w *Writer) Seal(before, after int64) error {
	if w.err != nil {
		return w.err
	}
	if w.err = w.table(); w.err != nil {
		return w.err
	}
	if w.err = w.flush(); w.err != nil {
		return w.err
	}
	w.head.Before, w.head.After, w.head.length = before, after, w.at
	return w.header()
}

// Bind writes down, in a journal that is sealed, what the target is.
func (w *Writer) Bind(target Digest) error {
	w.head.Target = target
	return w.header()
}

func (w *Writer) header() error {
	if w.err != nil {
		return w.err
	}
	head := block.AlignedBuffer(align)
	copy(head, w.head.encode())
	_, w.err = w.w.WriteAt(head, 0)
	return w.err
}
