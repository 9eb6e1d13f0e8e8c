// Package erastream reads and writes the stream of era_copy and era_apply: the
// changed ranges of a device with their data.
//
// For most uses, call Writer.Copy for each range and Writer.Close at the end; and
// Reader.Next for each record, then read its data from the Reader.
//
// The stream has no header, version, checksum or end mark: records follow one
// another to the end of the file.
//
//	off  size
//	  0     8  ASCII "ERARANGE"
//	  8     8  start in bytes, signed, little endian
//	 16     8  length in bytes, signed, little endian
//	 24        length bytes of data
//
// The originals write the numbers in the host's byte order; this package reads
// and writes little endian, that of every machine they are known to run on.
//
// The reader refuses a stream that breaks off inside a record, negative or
// overflowing numbers, records that overlap or do not ascend, and records past the
// end of the target. The originals refuse none of these. A stream that is cut off
// between two records looks like a whole one, and an empty stream is valid: the
// caller must know by other means that a stream is complete.
//
// Memory is constant. A Reader or Writer is for one goroutine at a time.
package erastream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

const (
	magic      = "ERARANGE"
	headerSize = 24
)

// Errors a caller acts on; all others come from the reader or writer below.
var (
	// ErrNotStream means that the input does not begin with a record.
	ErrNotStream = errors.New("not an era_copy stream")
	// ErrDamaged means a stream that is cut off or contradicts itself.
	ErrDamaged = errors.New("stream is damaged")
	// ErrOutOfBounds means a record past the end of the target.
	ErrOutOfBounds = errors.New("record is past the end of the target")
	// ErrIncomplete means a record that was given less, or more, data than
	// its length.
	ErrIncomplete = errors.New("record does not have its length")
)

// Record is the place of one piece of data on the device, in bytes.
type Record struct {
	Off int64
	Len int64
}

// End returns the byte after the record.
func (r Record) End() int64 { return r.Off + r.Len }

// check refuses records that do not fit after the byte prev.
func (r Record) check(prev int64) error {
	switch {
	case r.Off < 0 || r.Len < 0:
		return fmt.Errorf("negative start %d or length %d: %w", r.Off, r.Len, ErrDamaged)
	case r.Len > math.MaxInt64-r.Off:
		return fmt.Errorf("start %d and length %d overflow: %w", r.Off, r.Len, ErrDamaged)
	case r.Off < prev:
		return fmt.Errorf("start %d is before %d, the end of the record before: %w", r.Off, prev, ErrDamaged)
	}
	return nil
}

// Reader reads a stream record by record: Next for the place, Read for the data.
type Reader struct {
	r       io.Reader
	size    int64
	at      int64 // in the stream
	left    int64 // data of the record not read yet
	end     int64 // of the record
	records int64
	bytes   int64
	err     error
}

// NewReader returns a Reader. size is the size of the target in bytes: records that
// reach past it are refused with ErrOutOfBounds. A negative size allows any place.
func NewReader(r io.Reader, size int64) *Reader {
	if size < 0 {
		size = math.MaxInt64
	}
	return &Reader{r: r, size: size}
}

// Records returns how many records Next has returned.
func (s *Reader) Records() int64 { return s.records }

// Bytes returns how many bytes of data were read.
func (s *Reader) Bytes() int64 { return s.bytes }

// Next skips the rest of the current record and returns the next. After the last it
// returns io.EOF. Errors stay: after one every call returns it.
func (s *Reader) Next() (Record, error) {
	if s.left > 0 {
		if _, err := io.Copy(io.Discard, s); err != nil {
			return Record{}, err
		}
	}
	if s.err != nil {
		return Record{}, s.err
	}
	r, err := s.header()
	if err != nil {
		s.err = err
		return Record{}, err
	}
	s.left, s.end = r.Len, r.End()
	s.records++
	return r, nil
}

func (s *Reader) header() (Record, error) {
	var h [headerSize]byte
	n, err := io.ReadFull(s.r, h[:])
	if err == io.EOF {
		return Record{}, io.EOF
	}
	if string(h[:min(n, len(magic))]) != magic[:min(n, len(magic))] {
		if s.records == 0 {
			return Record{}, s.errorf("%q is no record: %w", h[:min(n, len(magic))], ErrNotStream)
		}
		return Record{}, s.errorf("%q where a record should begin: %w", h[:min(n, len(magic))], ErrDamaged)
	}
	if err != nil {
		return Record{}, s.cut(err)
	}
	s.at += headerSize
	r := Record{Off: int64(binary.LittleEndian.Uint64(h[8:])), Len: int64(binary.LittleEndian.Uint64(h[16:]))}
	if err := r.check(s.end); err != nil {
		return Record{}, s.errorf("%w", err)
	}
	if r.End() > s.size {
		return Record{}, s.errorf("bytes %d to %d of a target of %d: %w", r.Off, r.End(), s.size, ErrOutOfBounds)
	}
	return r, nil
}

// Read reads data of the current record; io.EOF is the end of the record, not
// of the stream.
func (s *Reader) Read(p []byte) (int, error) {
	if s.err != nil && s.err != io.EOF {
		return 0, s.err
	}
	if s.left == 0 {
		return 0, io.EOF
	}
	n, err := s.r.Read(p[:min(int64(len(p)), s.left)])
	s.left -= int64(n)
	s.at += int64(n)
	s.bytes += int64(n)
	if err == io.EOF && s.left == 0 {
		err = nil
	}
	if err != nil {
		s.err = s.cut(err)
		return n, s.err
	}
	return n, nil
}

func (s *Reader) cut(err error) error {
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return s.errorf("cut off inside a record: %w: %w", ErrDamaged, io.ErrUnexpectedEOF)
	}
	return err
}

func (s *Reader) errorf(format string, args ...any) error {
	return fmt.Errorf("erastream: record %d at byte %d: "+format, append([]any{s.records, s.at}, args...)...)
}

// Writer writes a stream record by record: Begin for the place, Write for the
// data.
type Writer struct {
	w    io.Writer
	left int64
	end  int64
	err  error
}

// NewWriter returns a Writer. Nothing is buffered: the data of a record should
// come in large pieces.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Begin begins the next record, which must begin at or after the end of the
// last. It fails with ErrIncomplete when that one lacks data.
func (s *Writer) Begin(r Record) error {
	if s.err != nil {
		return s.err
	}
	if s.left > 0 {
		return s.fail(fmt.Errorf("erastream: record that ends at byte %d: %d bytes missing: %w", s.end, s.left, ErrIncomplete))
	}
	if err := r.check(s.end); err != nil {
		return s.fail(fmt.Errorf("erastream: new record: %w", err))
	}
	var h [headerSize]byte
	copy(h[:], magic)
	binary.LittleEndian.PutUint64(h[8:], uint64(r.Off))
	binary.LittleEndian.PutUint64(h[16:], uint64(r.Len))
	if _, err := s.w.Write(h[:]); err != nil {
		return s.fail(err)
	}
	s.left, s.end = r.Len, r.End()
	return nil
}

// Write adds data to the current record. More than its length is refused before
// any of it is written.
func (s *Writer) Write(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	if int64(len(p)) > s.left {
		return 0, s.fail(fmt.Errorf("erastream: record that ends at byte %d: %d bytes too many: %w", s.end, int64(len(p))-s.left, ErrIncomplete))
	}
	n, err := s.w.Write(p)
	s.left -= int64(n)
	if err != nil {
		return n, s.fail(err)
	}
	return n, nil
}

// Copy writes a record with the data of src, which must have r.Len bytes or
// more: a source that ends early is an error, not a shorter record.
func (s *Writer) Copy(r Record, src io.Reader) error {
	if err := s.Begin(r); err != nil {
		return err
	}
	n, err := io.Copy(s, io.LimitReader(src, r.Len))
	if err == nil && n < r.Len {
		err = fmt.Errorf("erastream: bytes %d to %d: source ends after %d: %w", r.Off, r.End(), n, ErrIncomplete)
	}
	if err != nil {
		return s.fail(err)
	}
	return nil
}

// Close checks that the last record is complete. It does not close the writer
// below.
func (s *Writer) Close() error {
	if s.err == nil && s.left > 0 {
		return s.fail(fmt.Errorf("erastream: record that ends at byte %d: %d bytes missing: %w", s.end, s.left, ErrIncomplete))
	}
	return s.err
}

// fail makes an error final: the bytes written so far are no stream.
func (s *Writer) fail(err error) error {
	s.err = err
	return err
}
