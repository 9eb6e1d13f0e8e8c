package transfer

import (
	"cmp"
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
	batchBytes   = 512 << 10
	batchExtents = 64
	// holeBytes bounds what it takes on of an image file's holes.
	holeBytes = 16 << 20
)

// batch is a list of extents that one goroutine reads; at most batchBytes or one
// block. A hole is one extent in which its source held nothing when it was cut.
type batch struct {
	number  int
	extents []extent.Extent
	hole    bool
}

// bytes returns the length of all extents together.
func (b batch) bytes() int64 {
	var n int64
	for _, e := range b.extents {
		n += e.Len
	}
	return n
}

// cutter cuts extents into batches, in ascending order. Its methods return the error of
// emit.
type cutter struct {
	blockSize int64
	emit      func(batch) error
	number    int
	extents   []extent.Extent // of the batch that is not full yet
	room      int64           // that is left in it
}

func newCutter(blockSize int64, emit func(batch) error) *cutter {
	return &cutter{blockSize: blockSize, emit: emit, room: max(batchBytes, blockSize)}
}

func (c *cutter) add(e extent.Extent) error {
	for !e.Empty() {
		if c.room < min(c.blockSize, e.Len) || len(c.extents) == batchExtents {
			if err := c.flush(); err != nil {
				return err
			}
		}
		n := min(e.Len, c.room/c.blockSize*c.blockSize)
		c.extents = append(c.extents, extent.Extent{Off: e.Off, Len: n})
		e = extent.Extent{Off: e.Off + n, Len: e.Len - n}
		c.room -= n
	}
	return nil
}

func (c *cutter) flush() error {
	if len(c.extents) == 0 {
		return nil
	}
	b := batch{number: c.number, extents: c.extents}
	c.number, c.extents, c.room = c.number+1, nil, max(batchBytes, c.blockSize)
	return c.emit(b)
}

func (c *cutter) hole(e extent.Extent) error {
	if err := c.flush(); err != nil {
		return err
	}
	c.number++
	return c.emit(batch{number: c.number - 1, extents: []extent.Extent{e}, hole: true})
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
	group, ctx := errgroup.WithContext(ctx)
	work := make(chan batch)
	group.Go(func() error {
		defer close(work)
		err := p.cut(set, newCutter(p.blockSize, func(b batch) error {
			select {
			case work <- b:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}))
		return cmp.Or(err, context.Cause(ctx))
	})
	for range p.readers {
		group.Go(func() error {
			r := reader{pass: p}
			for b := range work {
				if err := r.take(ctx, b); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// cut makes batches of a set. Long holes of the source are batches of their own.
func (p *pass) cut(set extent.Set, c *cutter) error {
	most := max(holeBytes, p.blockSize) / p.blockSize * p.blockSize
	for _, e := range set.Extents() {
		for !e.Empty() {
			piece := extent.Extent{Off: e.Off, Len: min(e.Len, most)}
			e = extent.Extent{Off: piece.End(), Len: e.Len - piece.Len}
			add := c.add
			if piece.Len > batchBytes {
				if data, err := p.source.Data(piece); err != nil {
					return err
				} else if data.Empty() {
					add = c.hole
				}
			}
			if err := add(piece); err != nil {
				return err
			}
		}
	}
	return c.flush()
}

// reader is one of the goroutines of a pass.
type reader struct {
	*pass
	buf []byte // for one batch that is no hole
}

// buffer returns memory for a batch.
func (r *reader) buffer(b batch) []byte {
	if r.keep {
		return block.AlignedBuffer(int(b.bytes()))
	}
	if n := b.bytes(); int64(len(r.buf)) < n {
		r.buf = block.AlignedBuffer(int(n))
	}
	return r.buf
}

func (r *reader) take(ctx context.Context, b batch) error {
	if err := r.bring(ctx, b); err != nil {
		return err
	}
	r.done(b, b.bytes())
	return nil
}

// bring reads a batch and gives it to put. What was a hole and is none any more is read
// in batches of the usual size.
func (r *reader) bring(ctx context.Context, b batch) error {
	if b.hole {
		data, err := r.source.Data(b.extents[0])
		switch {
		case err != nil:
			return err
		case data.Empty():
			return r.put([]Chunk{{Extent: b.extents[0]}})
		}
		c := newCutter(r.blockSize, func(part batch) error { return r.bring(ctx, part) })
		return errors.Join(c.add(b.extents[0]), c.flush())
	}
	if err := r.limit(ctx, int(b.bytes())); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	buf := r.buffer(b)
	chunks := make([]Chunk, len(b.extents))
	for i, e := range b.extents {
		chunks[i] = Chunk{Extent: e}
		if err := r.fetch(&chunks[i], buf[:e.Len]); err != nil {
			return err
		}
		buf = buf[e.Len:]
	}
	return r.put(chunks)
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
