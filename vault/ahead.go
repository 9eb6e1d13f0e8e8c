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
	streams    = 8                       // that are read ahead
	aheadMost  = 1 << 20                 // bytes read at once
	aheadLeast = format.ChunkSize + 4096 // bytes of a room: any chunk fits
)

// ahead reads parts of packs. Where one part is asked for behind the other it reads more than that,
// and the more the longer it goes on: segments are small, and the store may be far. What several
// goroutines ask for at once is read once. Rooms that were read into are used again.
type ahead struct {
	s       store.Store
	mu      sync.Mutex
	streams []*stream // the one used last in front
	rooms   [][]byte  // of streams that nobody uses any more
}

// stream is a part of a pack that was read, or is being read.
type stream struct {
	pack     format.PackName
	off, end int64
	users    int           // and one while it is among the streams; guarded by ahead.mu
	ready    chan struct{} // closed when there are data or err
	room     []byte
	data     []byte
	err      error
}

func newAhead(s store.Store) *ahead { return &ahead{s: s} }

// read calls use with n bytes of a pack from off on, or with fewer where it ends. They must not be
// changed, and are good until use returns.
func (a *ahead) read(ctx context.Context, k known, off, n int64, use func([]byte) error) error {
	s, isNew := a.stream(k, off, n)
	defer a.leave(s)
	if isNew {
		s.data, s.err = a.s.Get(ctx, k.name.String(), s.off, s.end-s.off, s.room)
		close(s.ready)
	}
	<-s.ready
	switch {
	case s.err == nil:
		from := min(off-s.off, int64(len(s.data)))
		return use(s.data[from:min(from+n, int64(len(s.data)))])
	case isNew:
		a.forget(s)
		if !errors.Is(s.err, store.ErrUnreadable) {
			return s.err
		}
	}
	// The one that failed may have been called off, or a disk cannot read what lies behind.
	b, err := a.s.Get(ctx, k.name.String(), off, n, nil)
	if err != nil {
		return err
	}
	return use(b)
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
			s.users++
			return s, false
		}
		more = max(n, min(2*(s.end-s.off), aheadMost))
		break
	}
	s = &stream{pack: k.name, off: off, end: off + min(more, max(n, k.size-off)), users: 2, ready: make(chan struct{})}
	s.room = a.takeRoom(s.end - s.off)
	a.streams = slices.Insert(a.streams, 0, s)
	if len(a.streams) > streams {
		last := a.streams[streams]
		a.streams = a.streams[:streams]
		a.left(last)
	}
	return s, true
}

// takeRoom returns room for n bytes. a.mu is held.
func (a *ahead) takeRoom(n int64) []byte {
	i := slices.IndexFunc(a.rooms, func(room []byte) bool { return int64(len(room)) >= n })
	if i < 0 {
		a.rooms = nil // they are of another time
		return make([]byte, max(n, aheadLeast))
	}
	room := a.rooms[i]
	a.rooms = slices.Delete(a.rooms, i, i+1)
	return room
}

func (a *ahead) leave(s *stream) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.left(s)
}

// forget takes a stream from the list. What others wait for stays theirs.
func (a *ahead) forget(s *stream) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if i := slices.Index(a.streams, s); i >= 0 {
		a.streams = slices.Delete(a.streams, i, i+1)
		a.left(s)
	}
}

// left ends one use of a stream, and keeps its room behind the last one. a.mu is held.
func (a *ahead) left(s *stream) {
	if s.users--; s.users == 0 && len(a.rooms) < streams {
		a.rooms = append(a.rooms, s.room)
	}
}
