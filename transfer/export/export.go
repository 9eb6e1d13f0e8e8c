// Package export writes parts of a device or image as a stream (package
// erastream) that package apply, and era_apply, bring to a copy of it.
//
// For most uses, call Write. It reads several parts at once and ahead of the writer, which
// gets them in order. It refuses a source that ends before a part does; the stream is
// then left inside a record, so that nobody takes it for a whole one. It holds a
// few MiB, whatever the size. Functions may be called by several goroutines at
// once.
package export

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"runtime"
	"sync"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/format/erastream"
)

// pieceSize is what is read at once at most, in bytes.
const pieceSize = 1 << 20

// Report tells what was written.
type Report struct {
	Records int64 `json:"records"`
	Bytes   int64 `json:"bytes"` // of data
}

// piece is a part of one record.
type piece struct {
	extent.Extent
	record extent.Extent // that it begins; empty inside of one
	buf    []byte
	read   chan error
}

// Write reads the extents of a set from src and writes them to w, each as one
// record. progress, if not nil, is told the bytes that are done. It ends with the
// cause of ctx when that ends, but not before a Write that is under way.
func Write(ctx context.Context, w io.Writer, src io.ReaderAt, set extent.Set, progress func(bytes int64)) (Report, error) {
	ctx, cancel := context.WithCancel(ctx)
	ahead := 4 * runtime.GOMAXPROCS(0)
	order, free := make(chan *piece, ahead), make(chan []byte, ahead)
	for range ahead {
		free <- block.AlignedBuffer(pieceSize)
	}
	var running sync.WaitGroup
	running.Go(func() {
		defer close(order)
		for p := range pieces(set) {
			select {
			case p.buf = <-free:
			case <-ctx.Done():
				return
			}
			running.Go(func() { p.read <- p.fetch(src) })
			order <- p // there is room for all that have a buffer
		}
	})
	rep, err := write(ctx, w, order, free, progress)
	cancel()
	running.Wait()
	if err != nil {
		return rep, fmt.Errorf("copy: %w", err)
	}
	return rep, nil
}

// pieces cuts a set into pieces, in order.
func pieces(set extent.Set) iter.Seq[*piece] {
	return func(yield func(*piece) bool) {
		for _, e := range set.Extents() {
			for at := e.Off; at < e.End(); at += pieceSize {
				p := &piece{Extent: extent.Extent{Off: at, Len: min(pieceSize, e.End()-at)}, read: make(chan error, 1)}
				if at == e.Off {
					p.record = e
				}
				if !yield(p) {
					return
				}
			}
		}
	}
}

func (p *piece) fetch(src io.ReaderAt) error {
	n, err := src.ReadAt(p.buf[:p.Len], p.Off)
	if int64(n) == p.Len {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = fmt.Errorf("source ends at byte %d: %w", p.Off+int64(n), io.ErrUnexpectedEOF)
	}
	return err
}

func write(ctx context.Context, w io.Writer, order <-chan *piece, free chan<- []byte, progress func(int64)) (rep Report, err error) {
	out := erastream.NewWriter(w)
	for p := range order {
		rerr := <-p.read
		if err := context.Cause(ctx); err != nil {
			return rep, err
		}
		if !p.record.Empty() {
			if err := out.Begin(erastream.Record{Off: p.record.Off, Len: p.record.Len}); err != nil {
				return rep, err
			}
			rep.Records++
		}
		if rerr != nil {
			return rep, rerr
		}
		if _, err := out.Write(p.buf[:p.Len]); err != nil {
			return rep, err
		}
		rep.Bytes += p.Len
		free <- p.buf // there is room for all
		if progress != nil {
			progress(rep.Bytes)
		}
	}
	if err := context.Cause(ctx); err != nil {
		return rep, err
	}
	return rep, out.Close()
}
