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
	// mergeData is how long an entry of data becomes at most by going on where the
	// one before ended, in bytes.
	mergeData = 4 << 20
)

// Writer writes a journal. Its caller makes it durable after Seal.
type Writer struct {
	w       io.WriterAt
	buf     []byte // of what is written at
	at      int64
	entries []Entry
	pass    uint32
	head    Header
	err     error
}

// NewWriter returns a Writer. w is empty.
func NewWriter(w io.WriterAt) *Writer {
	return &Writer{w: w, at: align, buf: block.AlignedBuffer(bufferSize)[:0]}
}

// Len returns the length that the journal has now, in bytes.
func (w *Writer) Len() int64 { return w.at + int64(len(w.buf)) }

// NextPass ends a pass: what is appended from now on may overlap what was appended
// before, and holds in its place.
func (w *Writer) NextPass() {
	if last := w.last(); last != nil && last.Pass == w.pass {
		w.pass++
	}
}

// Data appends that p comes to off (bytes) in the target. What was appended in the same
// pass must not overlap it: no Reader takes such a journal. Up to 16 MiB of one call
// stay in one entry.
func (w *Writer) Data(off int64, p []byte) error {
	for len(p) > 0 && w.err == nil {
		n := min(len(p), maxData)
		e, err := w.place(off, n)
		if err == nil {
			e.Len += int64(n)
			e.sum = crc32.Update(e.sum, castagnoli, p[:n])
			err = w.write(p[:n])
		}
		w.err = err
		off, p = off+int64(n), p[n:]
	}
	return w.err
}

// Zero appends that the target becomes zeros in e; see Data for what it must not
// overlap.
func (w *Writer) Zero(e extent.Extent) error {
	if e.Empty() || w.err != nil {
		return w.err
	}
	if last := w.last(); last != nil && last.Pass == w.pass && last.Zero() && last.End() == e.Off {
		last.Len += e.Len
		return nil
	}
	w.err = w.add(Entry{Extent: e, Pass: w.pass})
	return w.err
}

// place returns the entry to which n bytes of data at off belong: the last one, if
// they go on where it ends, or a new one.
func (w *Writer) place(off int64, n int) (*Entry, error) {
	last := w.last()
	if last != nil && last.Pass == w.pass && !last.Zero() && last.End() == off && last.At+last.Len == w.Len() && last.Len+int64(n) <= mergeData {
		return last, nil
	}
	if err := w.add(Entry{Extent: extent.Extent{Off: off}, Pass: w.pass}); err != nil {
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

// write appends p. What reaches w.w begins and ends at multiples of align, and lies in memory at such a multiple where p does: that
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

// Seal completes the journal. before and after are the sizes of the target, in bytes;
// blob is at most MaxBlob bytes, and may be empty.
func (w *Writer) Seal(before, after int64, blob []byte) error {
	if len(blob) > MaxBlob && w.err == nil {
		w.err = fmt.Errorf("redo: blob of %d bytes: at most %d", len(blob), MaxBlob)
	}
	if w.err == nil {
		w.err = w.table()
	}
	if len(blob) > 0 && w.err == nil {
		w.head.blobAt, w.head.blobLen, w.head.blobSum = w.Len(), uint32(len(blob)), crc32.Checksum(blob, castagnoli)
		w.err = w.write(blob)
	}
	if w.err == nil { // direct I/O has no other end
		w.err = w.write(make([]byte, (align-w.Len()%align)%align))
	}
	if w.err == nil {
		w.err = w.flush()
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
