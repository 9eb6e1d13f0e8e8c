package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"tidemark/block"
	"tidemark/extent"
)

const (
	// batchBytes and batchExtents bound what one reader takes on at a time.
	batchBytes   = 1 << 20
	batchExtents = 64
)

// batch is a list of extents that one goroutine reads; at most batchBytes or one
// block.
type batch struct {
	number  int
	extents []extent.Extent
}

// bytes returns the length of all extents together.
func (b batch) bytes() int64 {
	var n int64
	for _, e := range b.extents {
		n += e.Len
	}
	return n
}

// batches cuts a set into pieces, in ascending order.
func batches(set extent.Set, blockSize int64, emit func(batch) bool) {
	limit := max(batchBytes, blockSize)
	b := batch{}
	room := limit
	flush := func() bool {
		ok := len(b.extents) == 0 || emit(b)
		b = batch{number: b.number + 1}
		room = limit
		return ok
	}
	for _, e := range set.Extents() {
		for !e.Empty() {
			if room < min(blockSize, e.Len) || len(b.extents) == batchExtents {
				if !flush() {
					return
				}
			}
			n := min(e.Len, room/blockSize*blockSize)
			b.extents = append(b.extents, extent.Extent{Off: e.Off, Len: n})
			e = extent.Extent{Off: e.Off + n, Len: e.Len - n}
			room -= n
		}
	}
	flush()
}

// pass reads a set of extents of a source with several goroutines and gives each to
// put.
type pass struct {
	source    Source
	readers   int
	blockSize int64
	limit     func(ctx context.Context, n int) error
	// put is given chunks that are valid until it returns, or for good where keep says
	// so.
	put  func(chunks []Chunk) error
	keep bool
	done func(b batch, bytes int64)
	read atomic.Int64 // bytes
}

func (p *pass) run(ctx context.Context, set extent.Set) error {
	room := min(max(batchBytes, p.blockSize), set.Bytes())
	group, ctx := errgroup.WithContext(ctx)
	work := make(chan batch)
	group.Go(func() error {
		defer close(work)
		batches(set, p.blockSize, func(b batch) bool {
			select {
			case work <- b:
				return true
			case <-ctx.Done():
				return false
			}
		})
		return context.Cause(ctx)
	})
	for range p.readers {
		group.Go(func() error { return p.reader(ctx, work, int(room)) })
	}
	return group.Wait()
}

func (p *pass) reader(ctx context.Context, work <-chan batch, room int) error {
	var buf []byte
	for b := range work {
		switch {
		case p.keep:
			buf = block.AlignedBuffer(int(b.bytes()))
		case buf == nil:
			buf = block.AlignedBuffer(room)
		}
		if err := p.batch(ctx, b, buf); err != nil {
			return err
		}
	}
	return nil
}

func (p *pass) batch(ctx context.Context, b batch, buf []byte) error {
	bytes := b.bytes()
	if err := p.limit(ctx, int(bytes)); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	chunks := make([]Chunk, len(b.extents))
	for i, e := range b.extents {
		chunks[i] = Chunk{Extent: e}
		if err := p.fetch(&chunks[i], buf[:e.Len]); err != nil {
			return err
		}
		buf = buf[e.Len:]
	}
	if err := p.put(chunks); err != nil {
		return err
	}
	p.done(b, bytes)
	return nil
}

// fetch reads the data of a chunk into buf; the holes of an image file are not read.
func (p *pass) fetch(c *Chunk, buf []byte) error {
	data, err := p.source.Data(c.Extent)
	if err != nil || data.Empty() {
		return err
	}
	if c.Data = buf; data.Bytes() < c.Len {
		clear(buf)
	}
	for _, d := range data.Extents() {
		at := d.Off - c.Off
		if err := p.readAt(buf[at:at+d.Len], d.Off); err != nil {
			return err
		}
		p.read.Add(d.Len)
	}
	return nil
}

// readAt names the block that cannot be read, not only the request it was in.
func (p *pass) readAt(buf []byte, off int64) error {
	_, err := p.source.ReadAt(buf, off)
	if err == nil {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: it ends before byte %d", ErrResized, off+int64(len(buf)))
	}
	for at := int64(0); at < int64(len(buf)); at += p.blockSize {
		end := min(at+p.blockSize, int64(len(buf)))
		if _, err := p.source.ReadAt(buf[at:end], off+at); err != nil {
			return fmt.Errorf("read %d bytes at offset %d: %w", end-at, off+at, err)
		}
	}
	return fmt.Errorf("read %d bytes at offset %d: %w", len(buf), off, err)
}

// watermark follows how far from the start a first copy is done without a gap,
// while batches end in any order.
type watermark struct {
	mu    sync.Mutex
	bytes int64
	next  int
	ends  map[int]int64
}

func newWatermark(bytes int64) *watermark {
	return &watermark{bytes: bytes, ends: map[int]int64{}}
}

// done notes that batch b is in the target and returns the watermark.
func (w *watermark) done(b batch) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ends[b.number] = b.extents[len(b.extents)-1].End()
	for {
		end, ok := w.ends[w.next]
		if !ok {
			return w.bytes
		}
		delete(w.ends, w.next)
		w.next++
		w.bytes = max(w.bytes, end)
	}
}

func (w *watermark) get() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bytes
}
