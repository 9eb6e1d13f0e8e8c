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
// and the more the longer it goes on: segments are small, and the store may be far. What several
// goroutines ask for at once is read once.
type ahead struct {
	s       store.Store
	mu      sync.Mutex
	streams []*stream // the one used last in front
}

// stream is a part of a pack that was read, or is being read.
type stream struct {
	pack     format.PackName
	off, end int64
	ready    chan struct{} // closed when there are data or err
	data     []byte
	err      error
}

func newAhead(s store.Store) *ahead { return &ahead{s: s} }

// read returns n bytes of a pack from off on, or fewer where it ends. They must not be changed.
func (a *ahead) read(ctx context.Context, k known, off, n int64) ([]byte, error) {
	s, isNew := a.stream(k, off, n)
	if isNew {
		s.data, s.err = a.s.Get(ctx, k.name.String(), s.off, s.end-s.off)
		close(s.ready)
	}
	<-s.ready
	switch {
	case s.err == nil:
		from := min(off-s.off, int64(len(s.data)))
		return s.data[from:min(from+n, int64(len(s.data)))], nil
	case isNew:
		a.mu.Lock()
		a.streams = slices.DeleteFunc(a.streams, func(t *stream) bool { return t == s })
		a.mu.Unlock()
		if !errors.Is(s.err, store.ErrUnreadable) {
			return nil, s.err
		}
	}
	// The one that failed may have been called off, or a disk cannot read what lies behind.
	return a.s.Get(ctx, k.name.String(), off, n)
}

// stream returns one that has n bytes from off on, and whether that is yet to be read.
func (a *ahead) stream(k known, off, n int64) (s *stream, isNew bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	more := n
	for i, s := range a.streams {
		if s.pack != k.name || off < s.off || off > s.end {
			continue
		}
		a.streams = slices.Insert(slices.Delete(a.streams, i, i+1), 0, s)
		if off+n <= s.end {
			return s, false
		}
		more = max(n, min(2*(s.end-s.off), aheadMost))
		break
	}
	s = &stream{pack: k.name, off: off, end: off + min(more, max(n, k.size-off)), ready: make(chan struct{})}
	a.streams = slices.Insert(a.streams, 0, s)
	a.streams = a.streams[:min(len(a.streams), streams)]
	return s, true
}
