package sidecar

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"tidemark/block"
	"tidemark/extent"
)

// Record is one change of a journal. Its slices are valid until the next call of
// Next.
type Record struct {
	extent.Extent        // in the target, bytes
	Sums          []Sum  // one for each block; all zero where Data is nil
	Data          []byte // nil: the extent becomes zeros
}

// JournalReader reads a journal front to back and hands out only what it has
// checked.
type JournalReader struct {
	JournalHeader
	r       *bufio.Reader
	chain   Sum
	records int64
	state   *State
	data    []byte
	sums    []Sum
}

// NewJournalReader reads the header of a journal. The error wraps ErrNotOurs,
// ErrDamaged, ErrNewer, or ErrIncomplete where even the header is cut short.
func NewJournalReader(r io.Reader) (*JournalReader, error) {
	j := &JournalReader{r: bufio.NewReaderSize(r, 1<<16)}
	b := make([]byte, journalHeader)
	if err := j.fill(b); err != nil {
		return nil, fmt.Errorf("journal: header: %w", err)
	}
	var err error
	j.JournalHeader, err = decodeJournalHeader(b)
	return j, err
}

// Next returns the next change. It returns io.EOF behind the last one, when the
// journal was complete and State is known. Other errors wrap ErrIncomplete where
// the journal just ends, and ErrDamaged where it holds something wrong.
func (j *JournalReader) Next() (Record, error) {
	if j.state != nil {
		return Record{}, io.EOF
	}
	rec, err := j.next()
	if err != nil && err != io.EOF {
		return Record{}, fmt.Errorf("journal: record %d: %w", j.records, err)
	}
	return rec, err
}

// State returns what the target is once all changes are applied. It is known
// when Next has returned io.EOF.
func (j *JournalReader) State() State { return *j.state }

func (j *JournalReader) next() (Record, error) {
	head := make([]byte, recordHeader)
	if err := j.fill(head); err != nil {
		return Record{}, err
	}
	r, err := decodeRecord(head, j.JournalHeader)
	if err != nil {
		return Record{}, err
	}
	if r.kind == kindDone {
		return Record{}, j.done(head, r)
	}
	raw := make([]byte, r.sums*SumSize)
	if err := j.fill(raw); err != nil {
		return Record{}, err
	}
	if got := checksum(head[:24], raw); got != r.sum {
		return Record{}, fmt.Errorf("checksum %x, want %x: %w", r.sum, got, ErrDamaged)
	}
	j.chain = checksum(j.chain[:], r.sum[:])
	j.records++
	rec := Record{Extent: extent.Extent{Off: r.off, Len: r.len}}
	if r.kind == kindZero {
		return rec, nil
	}
	return rec, j.readData(&rec, raw)
}

// readData reads the data of a record and holds each block against its checksum.
func (j *JournalReader) readData(rec *Record, rawSums []byte) error {
	if int64(cap(j.data)) < rec.Len {
		j.data = make([]byte, rec.Len)
	}
	rec.Data = j.data[:rec.Len]
	if err := j.fill(rec.Data); err != nil {
		return err
	}
	j.sums = j.sums[:0]
	for at := int64(0); at < rec.Len; at += j.BlockSize {
		want := Sum(rawSums[len(j.sums)*SumSize:])
		b := rec.Data[at:min(at+j.BlockSize, rec.Len)]
		var got Sum
		if !block.IsZero(b) {
			got = SumOf(b)
		}
		if got != want {
			return fmt.Errorf("block at %d: checksum %x, want %x: %w", rec.Off+at, got, want, ErrDamaged)
		}
		j.sums = append(j.sums, want)
	}
	rec.Sums = j.sums
	return nil
}

func (j *JournalReader) done(head []byte, r record) error {
	b := make([]byte, r.len)
	if err := j.fill(b); err != nil {
		return err
	}
	payload := checksum(b)
	if got := checksum(head[:24], j.chain[:], payload[:]); got != r.sum {
		return fmt.Errorf("last record: checksum %x, want %x: %w", r.sum, got, ErrDamaged)
	}
	if r.off != j.records {
		return fmt.Errorf("last record counts %d records, there are %d: %w", r.off, j.records, ErrDamaged)
	}
	s, err := DecodeState(b)
	if err != nil {
		return err
	}
	if s.ID != j.ID || s.Update != j.Update || s.Size != j.Size || s.BlockSize != j.BlockSize {
		return fmt.Errorf("state and header disagree: %w", ErrDamaged)
	}
	if _, err := j.r.ReadByte(); err == nil {
		return fmt.Errorf("bytes behind the last record: %w", ErrDamaged)
	} else if err != io.EOF {
		return err
	}
	j.state = &s
	return io.EOF
}

// fill reads all of b; the journal ending on the way is ErrIncomplete.
func (j *JournalReader) fill(b []byte) error {
	_, err := io.ReadFull(j.r, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return ErrIncomplete
	}
	return err
}
