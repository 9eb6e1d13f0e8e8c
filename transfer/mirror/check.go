package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/format/sums"
	"tidemark/transfer/transaction"
)

// checkChunk is how much Check reads at once, in bytes.
const checkChunk = 1 << 20

// Check reads the target, from its disk, and returns the blocks whose content is not what
// their checksums say, as far as the mirror has been copied. progress, if not nil, is told
// the bytes read; it is called by one goroutine at a time.
func (s *Store) Check(ctx context.Context, progress func(bytes int64)) (extent.Set, error) {
	transaction.Reread(s.target, s.sumsFile)
	var (
		mu  sync.Mutex
		bad []extent.Extent
	)
	chunk := max(checkChunk, s.state.BlockSize)
	group, running := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	bufs := sync.Pool{New: func() any { b := block.AlignedBuffer(int(chunk)); return &b }}
	end := s.Copied()
	for off := int64(0); off < end && running.Err() == nil; off += chunk {
		e := extent.Extent{Off: off, Len: min(chunk, end-off)}
		group.Go(func() error {
			buf := bufs.Get().(*[]byte)
			defer bufs.Put(buf)
			wrong, err := s.checkChunk((*buf)[:e.Len], e.Off)
			mu.Lock()
			defer mu.Unlock()
			bad = append(bad, wrong...)
			if progress != nil {
				progress(e.Len)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return extent.Set{}, fmt.Errorf("mirror: check: %w", err)
	}
	return extent.NewSet(bad...), context.Cause(ctx)
}

func (s *Store) checkChunk(buf []byte, off int64) ([]extent.Extent, error) {
	if err := readFull(s.target, buf, off); err != nil {
		return nil, fmt.Errorf("%d bytes at offset %d: %w", len(buf), off, err)
	}
	bs := s.state.BlockSize
	want := make([]sums.Sum, sums.Blocks(int64(len(buf)), bs))
	if err := s.sums.Read(want, off); err != nil {
		return nil, err
	}
	var bad []extent.Extent
	for i, got := range sumsOf(buf, bs) {
		if got != want[i] {
			at := int64(i) * bs
			bad = append(bad, extent.Extent{Off: off + at, Len: min(bs, int64(len(buf))-at)})
		}
	}
	return bad, nil
}

// sumsOf returns the checksum of each block.
func sumsOf(data []byte, blockSize int64) []sums.Sum {
	all := make([]sums.Sum, sums.Blocks(int64(len(data)), blockSize))
	for i := range all {
		at := int64(i) * blockSize
		all[i] = sums.Of(data[at:min(at+blockSize, int64(len(data)))])
	}
	return all
}

// readFull reads len(p) bytes; what lies behind the end reads as zeros.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		clear(p[n:])
		return nil
	}
	return err
}
