package mirror

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/format/state"
	"tidemark/format/sums"
	"tidemark/transfer/transaction"
)

// checkChunk is how much Check reads at once, in bytes.
const checkChunk = 1 << 20

// Check reads the target, from its disk, and returns the blocks whose content is not what
// their checksums say, as far as the mirror has been copied. Holes where the
// checksums are those of zeros are not read. progress, if not nil, is told the bytes that
// were checked; it is called by one goroutine at a time.
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
	check := func(e extent.Extent) {
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
	end := s.Copied()
	for off := int64(0); off < end && running.Err() == nil; off += window {
		w := extent.Extent{Off: off, Len: min(window, end-off)}
		data, err := s.data(w)
		if err != nil {
			return extent.Set{}, errors.Join(fmt.Errorf("mirror: check: %w", err), group.Wait())
		}
		data = data.Align(chunk, end).Clip(w)
		if left := w.Len - data.Bytes(); progress != nil && left > 0 {
			mu.Lock()
			progress(left)
			mu.Unlock()
		}
		for _, e := range data.Extents() {
			for ; !e.Empty() && running.Err() == nil; e.Off, e.Len = e.Off+chunk, e.Len-chunk {
				check(extent.Extent{Off: e.Off, Len: min(chunk, e.Len)})
			}
		}
	}
	if err := group.Wait(); err != nil {
		return extent.Set{}, fmt.Errorf("mirror: check: %w", err)
	}
	return extent.NewSet(bad...), context.Cause(ctx)
}

// window is how much is looked through for holes at once, in bytes.
const window = 4 << 30

// data returns the parts of e that hold anything but holes, or should.
func (s *Store) data(e extent.Extent) (extent.Set, error) {
	held, err := sums.DataOf(s.target, e)
	if err != nil {
		return held, err
	}
	should, err := s.sums.Data(e)
	return held.Union(should), err
}

// Differ returns the blocks of places whose content is not what the checksums of a mirror
// say, without opening the mirror or locking it. path is that of its folder, st its state.
func Differ(path string, st state.State, target transaction.Target, places extent.Set) (bad extent.Set, err error) {
	defer explain(&err, "check")
	f, err := os.Open(filepath.Join(path, sumsFile))
	if err != nil {
		return bad, err
	}
	defer f.Close()
	s := &Store{target: target, state: st}
	if s.sums, err = sums.Open(f, st.ID, st.BlockSize); err != nil {
		return bad, err
	}
	buf := block.AlignedBuffer(int(max(checkChunk, st.BlockSize)))
	var all []extent.Extent
	for _, e := range places.Align(st.BlockSize, st.Size).Extents() {
		for off := e.Off; off < e.End(); off += int64(len(buf)) {
			wrong, err := s.checkChunk(buf[:min(int64(len(buf)), e.End()-off)], off)
			if err != nil {
				return bad, err
			}
			all = append(all, wrong...)
		}
	}
	return extent.NewSet(all...), nil
}

func (s *Store) checkChunk(buf []byte, off int64) ([]extent.Extent, error) {
	if err := block.ReadPadded(s.target, buf, off); err != nil {
		return nil, fmt.Errorf("%d bytes at offset %d: %w", len(buf), off, err)
	}
	return s.sums.Wrong(extent.Extent{Off: off, Len: int64(len(buf))}, buf)
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
