package apply

import (
	"context"
	"io"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/format/erastream"
)

const (
	// pieceSize is how much of a record is handed on at once, in bytes.
	pieceSize = 2 << 20
	// chunkSize and chunks bound what is read of a stream ahead of its use, in bytes.
	chunkSize = 256 << 10
	chunks    = 16
	// pageSize is what direct I/O wants offsets to be a multiple of, in bytes.
	pageSize = 4096
	// zeroRun is the least run of zeros that becomes a hole, and where it begins
	// is a multiple of it, in bytes.
	zeroRun = 64 << 10
)

// sink takes the content of a stream in order; a transaction.Txn is one.
type sink interface {
	Data(off int64, p []byte) error
	Zero(e extent.Extent) error
}

// ahead reads a stream ahead of its use. It is itself a reader, which ends with the cause
// of ctx when that ends, also while a Read below does not return.
type ahead struct {
	ctx  context.Context
	full chan chunk
	free chan []byte
	now  chunk
	rest []byte // of now
}

type chunk struct {
	buf []byte
	n   int
	err error
}

// readAhead begins to read r. The reading ends with ctx, but for a Read that never
// returns: nothing may use r afterwards.
func readAhead(ctx context.Context, r io.Reader) *ahead {
	a := &ahead{ctx: ctx, full: make(chan chunk, chunks), free: make(chan []byte, chunks)}
	for range chunks {
		a.free <- make([]byte, chunkSize)
	}
	go func() {
		for {
			select {
			case buf := <-a.free:
				n, err := r.Read(buf)
				a.full <- chunk{buf, n, err} // there is room for all
				if err != nil {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return a
}

func (a *ahead) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.now.err != nil {
			return 0, a.now.err
		}
		if a.now.buf != nil {
			a.free <- a.now.buf
		}
		select {
		case a.now = <-a.full:
			a.rest = a.now.buf[:a.now.n]
		case <-a.ctx.Done():
			a.now = chunk{err: context.Cause(a.ctx)}
		}
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// pump reads a stream to its end into a sink. Records past limit are refused, unless it is
// negative. Nothing may use r after an error.
func pump(ctx context.Context, r io.Reader, limit int64, to sink, o Options) (rep Report, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := erastream.NewReader(readAhead(ctx, r), limit)
	buf := block.AlignedBuffer(pieceSize)
	for told := int64(0); ; {
		rec, err := s.Next()
		for err == nil && rec.Len > 0 {
			rep.end = rec.End()
			at := rec.Off % pageSize // data lies at the same place in a page as in the target
			data := buf[at:][:min(pieceSize-at, rec.Len)]
			if _, err = io.ReadFull(s, data); err == nil {
				err = split(rec.Off, data, to, &rep.Zeros)
			}
			rec.Off, rec.Len = rec.Off+int64(len(data)), rec.Len-int64(len(data))
		}
		if rep.Records, rep.Bytes = s.Records(), s.Bytes(); rep.Bytes-told >= pieceSize {
			told = rep.Bytes
			o.progress(PhaseRead, told, -1)
		}
		if err == io.EOF {
			return rep, nil
		}
		if err != nil {
			return rep, err
		}
	}
}

// split hands data for off over as data and runs of zeros, and counts the zeros.
func split(off int64, data []byte, to sink, zeros *int64) (err error) {
	for len(data) > 0 && err == nil {
		n, zero := nextRun(off, data)
		if zero {
			*zeros += int64(n)
			err = to.Zero(extent.Extent{Off: off, Len: int64(n)})
		} else {
			err = to.Data(off, data[:n])
		}
		off, data = off+int64(n), data[n:]
	}
	return err
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
