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
	"tidemark/format/sidecar"
	"tidemark/transfer/mirror"
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

// pass reads a set of extents of one job's source with several goroutines and
// gives each to put.
type pass struct {
	job       *job
	readers   int
	blockSize int64
	limit     func(ctx context.Context, n int) error
	put       func(chunks []mirror.Chunk) error
	done      func(b batch, bytes int64)
	read      atomic.Int64
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
	err := group.Wait()
	p.job.report.Read += p.read.Load()
	return err
}

func (p *pass) reader(ctx context.Context, work <-chan batch, room int) error {
	var buf []byte
	for b := range work {
		if buf == nil {
			buf = block.AlignedBuffer(room)
		}
		if err := p.batch(ctx, b, buf); err != nil {
			return err
		}
	}
	return nil
}

func (p *pass) batch(ctx context.Context, b batch, buf []byte) error {
	var bytes int64
	chunks := make([]mirror.Chunk, len(b.extents))
	for i, e := range b.extents {
		chunks[i] = mirror.Chunk{Off: e.Off, Data: buf[bytes : bytes+e.Len]}
		bytes += e.Len
	}
	if err := p.limit(ctx, int(bytes)); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if err := p.fetch(chunks); err != nil {
		return err
	}
	for i := range chunks {
		chunks[i].Sums = sumsOf(chunks[i].Data, p.blockSize)
	}
	if err := p.put(chunks); err != nil {
		return err
	}
	p.done(b, bytes)
	return nil
}

// fetch reads the data of all chunks; the holes of an image file are not read.
func (p *pass) fetch(chunks []mirror.Chunk) error {
	for _, c := range chunks {
		data, err := p.job.Source.Data(c.Extent())
		if err != nil {
			return err
		}
		if data.Bytes() < int64(len(c.Data)) {
			clear(c.Data)
		}
		for _, d := range data.Extents() {
			at := d.Off - c.Off
			if err := p.readAt(c.Data[at:at+d.Len], d.Off); err != nil {
				return err
			}
			p.read.Add(d.Len)
		}
	}
	return nil
}

// readAt names the block that cannot be read, not only the request it was in.
func (p *pass) readAt(buf []byte, off int64) error {
	_, err := p.job.Source.ReadAt(buf, off)
	if err == nil {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: it ends before byte %d", ErrResized, off+int64(len(buf)))
	}
	for at := int64(0); at < int64(len(buf)); at += p.blockSize {
		end := min(at+p.blockSize, int64(len(buf)))
		if _, err := p.job.Source.ReadAt(buf[at:end], off+at); err != nil {
			return fmt.Errorf("read %d bytes at offset %d: %w", end-at, off+at, err)
		}
	}
	return fmt.Errorf("read %d bytes at offset %d: %w", len(buf), off, err)
}

// sumsOf returns the checksum of each block; that of zeros is zero.
func sumsOf(data []byte, blockSize int64) []sidecar.Sum {
	sums := make([]sidecar.Sum, sidecar.Blocks(int64(len(data)), blockSize))
	for i := range sums {
		at := int64(i) * blockSize
		b := data[at:min(at+blockSize, int64(len(data)))]
		if !block.IsZero(b) {
			sums[i] = sidecar.SumOf(b)
		}
	}
	return sums
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
