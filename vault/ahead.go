package vault

import (
	"context"
	"errors"
	"slices"
	"sync"

	format "tidemark/format/vault"
	"tidemark/vault/store"
)

const (
	streams   = 8       // that are read ahead
	aheadMost = 1 << 20 // bytes read at once
)

// ahead reads parts of packs. Where one part is asked for behind the other it reads more than that,
// and the more the longer it goes on: segments are small, and the store may be far.
type ahead struct {
	s       store.Store
	mu      sync.Mutex
	streams []*stream // the one used last in front
}

// stream is a part of a pack that was read.
type stream struct {
	pack format.PackName
	off  int64
	data []byte
}

func newAhead(s store.Store) *ahead { return &ahead{s: s} }

// read returns n bytes of a pack from off on. They must not be changed.
func (a *ahead) read(ctx context.Context, k known, off, n int64) ([]byte, error) {
	more := n
	a.mu.Lock()
	for i, s := range a.streams {
		end := s.off + int64(len(s.data))
		if s.pack != k.name || off < s.off || off > end {
			continue
		}
		a.streams = slices.Insert(slices.Delete(a.streams, i, i+1), 0, s)
		if off+n <= end {
			a.mu.Unlock()
			return s.data[off-s.off : off-s.off+n], nil
		}
		more = max(n, min(2*int64(len(s.data)), aheadMost))
		break
	}
	a.mu.Unlock()
	more = min(more, max(n, k.size-off))
	data, err := a.s.Get(ctx, k.name.String(), off, more)
	if errors.Is(err, store.ErrUnreadable) && more > n { // what was asked for may be sound
		data, err = a.s.Get(ctx, k.name.String(), off, n)
	}
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	a.streams = slices.Insert(a.streams, 0, &stream{k.name, off, data})
	a.streams = a.streams[:min(len(a.streams), streams)]
	a.mu.Unlock()
	return data[:min(n, int64(len(data)))], nil
}
