package apply

import (
	"bufio"
	"context"
	"io"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/format/erastream"
)

const (
	batchSize = 2 << 20
	batches   = 3 // in flight: one is filled, one waits, one is written
	// pageSize is what direct I/O wants offsets to be a multiple of, in bytes.
	pageSize = 4096
	// zeroRun is the least run of zeros that becomes a hole, and where it begins
	// is a multiple of it, in bytes.
	zeroRun = 64 << 10
	// readAhead is read at once where records are small, in bytes.
	readAhead = 64 << 10
)

// sink takes the content of a stream in order; a transaction.Txn is one.
type sink interface {
	Data(off int64, p []byte) error
	Zero(e extent.Extent) error
}

// batch is a part of the stream.
type batch struct {
	buf    []byte
	used   int
	pieces []piece
	err    error // of the reader, io.EOF at the end of the stream
	report Report
}

// piece is data of one record; data lies at the same place in a page of the buffer
// as in one of the target.
type piece struct {
	off  int64
	data []byte
}

// pump reads a stream to its end into a sink. Records past limit are refused,
// unless it is negative. A Read that never returns is left behind when ctx ends;
// nothing may use r after an error.
func pump(ctx context.Context, r io.Reader, limit int64, to sink, o Options) (Report, error) {
	full, free := make(chan *batch, batches), make(chan *batch, batches)
	for range batches {
		free <- &batch{buf: block.AlignedBuffer(batchSize)}
	}
	quit := make(chan struct{})
	defer close(quit)
	go fill(erastream.NewReader(bufio.NewReaderSize(r, readAhead), limit), full, free, quit)
	var rep Report
	for {
		var b *batch
		select {
		case b = <-full:
		case <-ctx.Done():
			return rep, context.Cause(ctx)
		}
		zeros := rep.Zeros
		rep = b.report
		rep.Zeros = zeros
		for _, p := range b.pieces {
			n, err := p.split(to)
			rep.Zeros += n
			if err != nil {
				return rep, err
			}
		}
		if b.err == io.EOF {
			return rep, nil
		}
		if b.err != nil {
			return rep, b.err
		}
		o.progress(PhaseRead, rep.Bytes, -1)
		free <- b
	}
}

// fill reads the stream into batches until it ends.
func fill(s *erastream.Reader, full chan<- *batch, free <-chan *batch, quit <-chan struct{}) {
	var rep Report
	var rest erastream.Record // of the record that was begun
	for {
		var b *batch
		select {
		case b = <-free:
		case <-quit:
			return
		}
		b.used, b.pieces = 0, b.pieces[:0]
		for b.err == nil && b.room(rest.Off) {
			if rest.Len > 0 {
				rest, b.err = b.read(s, rest)
				continue
			}
			if rest, b.err = s.Next(); b.err == nil && rest.Len > 0 {
				rep.end = rest.End()
			}
		}
		rep.Records, rep.Bytes = s.Records(), s.Bytes()
		b.report = rep
		full <- b // there is room for all batches
		if b.err != nil {
			return
		}
	}
}

// room reports whether the batch can take more data for off.
func (b *batch) room(off int64) bool {
	return b.place(off) < len(b.buf) && len(b.pieces) < cap(b.buf)/512
}

// place returns where in the buffer data for off begins.
func (b *batch) place(off int64) int {
	return b.used + int((off-int64(b.used))%pageSize+pageSize)%pageSize
}

// read reads as much of a record as fits, and returns what is left of it.
func (b *batch) read(s *erastream.Reader, rec erastream.Record) (erastream.Record, error) {
	at := b.place(rec.Off)
	n := int(min(int64(len(b.buf)-at), rec.Len))
	data := b.buf[at : at+n]
	if _, err := io.ReadFull(s, data); err != nil {
		return rec, err
	}
	b.pieces = append(b.pieces, piece{rec.Off, data})
	b.used = at + n
	return erastream.Record{Off: rec.Off + int64(n), Len: rec.Len - int64(n)}, nil
}

// split hands a piece over as data and runs of zeros, and returns how many bytes
// were zeros.
func (p piece) split(to sink) (zeros int64, err error) {
	off, data := p.off, p.data
	for len(data) > 0 && err == nil {
		n, zero := nextRun(off, data)
		if zero {
			zeros += int64(n)
			err = to.Zero(extent.Extent{Off: off, Len: int64(n)})
		} else {
			err = to.Data(off, data[:n])
		}
		off, data = off+int64(n), data[n:]
	}
	return zeros, err
}

// nextRun returns the length of what is all zeros, or all not, at the start of
// data.
func nextRun(off int64, data []byte) (int, bool) {
	n, zero := nextCell(off, data)
	for n < len(data) {
		m, z := nextCell(off+int64(n), data[n:])
		if z != zero {
			break
		}
		n += m
	}
	return n, zero
}

// nextCell returns what of data lies before the next multiple of zeroRun, and
// whether it is a whole run of zeros.
func nextCell(off int64, data []byte) (int, bool) {
	n := min(int(zeroRun-off%zeroRun), len(data))
	return n, n == zeroRun && block.IsZero(data[:n])
}
