package sidecar

import (
	"fmt"
	"io"

	"tidemark/extent"
)

// JournalWriter writes a journal front to back. Its caller makes it durable.
type JournalWriter struct {
	w       io.Writer
	head    JournalHeader
	chain   Sum
	records int64
}

// NewJournalWriter writes the header of a journal to w.
func NewJournalWriter(w io.Writer, h JournalHeader) (*JournalWriter, error) {
	if h.BlockSize > MaxBlock {
		return nil, fmt.Errorf("journal: block size %d: at most %d", h.BlockSize, MaxBlock)
	}
	if err := checkBlockSize(uint32(h.BlockSize)); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	if _, err := w.Write(h.encode()); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	return &JournalWriter{w: w, head: h}, nil
}

// Data appends the new content of the blocks from off (bytes) with one checksum
// for each block; at most MaxData bytes.
func (j *JournalWriter) Data(off int64, data []byte, sums []Sum) error {
	e := extent.Extent{Off: off, Len: int64(len(data))}
	if len(data) > MaxData || int64(len(sums)) != Blocks(e.Len, j.head.BlockSize) {
		return fmt.Errorf("journal: %d checksums for %d bytes at %d", len(sums), len(data), off)
	}
	if err := checkPlace(e, j.head); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return j.append(record{kind: kindData, off: e.Off, len: e.Len}, sums, data, nil)
}

// Zero appends that the blocks of e are zeros from now on.
func (j *JournalWriter) Zero(e extent.Extent) error {
	if err := checkPlace(e, j.head); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return j.append(record{kind: kindZero, off: e.Off, len: e.Len}, nil, nil, nil)
}

// Done appends the last record with the state that the target will be in. Once
// everything up to here is durable the update may be committed.
func (j *JournalWriter) Done(s State) error {
	b, err := s.Encode()
	if err != nil {
		return err
	}
	if len(b) > MaxState {
		return fmt.Errorf("journal: state of %d bytes: at most %d", len(b), MaxState)
	}
	payload := checksum(b)
	chain := append(j.chain[:], payload[:]...)
	return j.append(record{kind: kindDone, off: j.records, len: int64(len(b))}, nil, b, chain)
}

func (j *JournalWriter) append(r record, sums []Sum, data, chain []byte) error {
	head, sum := r.encode(sums, chain)
	if _, err := j.w.Write(head); err != nil {
		return fmt.Errorf("journal: record %d: %w", j.records, err)
	}
	if _, err := j.w.Write(data); err != nil {
		return fmt.Errorf("journal: record %d: %w", j.records, err)
	}
	j.chain = checksum(j.chain[:], sum[:])
	j.records++
	return nil
}
