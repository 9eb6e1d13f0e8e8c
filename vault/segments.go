package vault

import (
	"context"
	"fmt"
	"slices"
	"sync"

	format "tidemark/format/vault"
)

// segments keeps the plain bytes of the segments that were read last, each in a room that is used
// again: who reads a block here and there would otherwise leave a chunk of garbage for each. It may be
// used by several goroutines at once; what several ask for at once is read once.
type segments struct {
	mu    sync.Mutex
	slots []*slot // the one used last in front
}

// slot is room for one segment.
type slot struct {
	ref   format.Ref // guarded by segments.mu
	users int        // the same; one that is used stays what it is

	mu    sync.Mutex
	plain []byte // nil: not read yet
	room  []byte
}

// copy copies bytes of a segment, from at on, into p. Where they are not there load reads all of
// the segment, into the room that it gets where that is large enough.
func (c *segments) copy(ref format.Ref, at int64, p []byte, load func(room []byte) ([]byte, error)) error {
	s := c.take(ref)
	defer c.leave(s)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.plain == nil {
		b, err := load(s.room)
		if err != nil {
			return err
		}
		if s.plain = b; cap(b) > len(s.room) {
			s.room = b[:cap(b)]
		}
	}
	return part(ref, s.plain, at, p)
}

// part copies bytes of a segment, from at on, into p, unless they lie there.
func part(ref format.Ref, plain []byte, at int64, p []byte) error {
	if at+int64(len(p)) > int64(len(plain)) {
		return fmt.Errorf("vault: %v has %d bytes, and the map wants %d from %d on: %w", ref, len(plain), len(p), at, format.ErrDamaged)
	}
	copy(p, plain[at:])
	return nil
}

// take returns the slot of a segment, which is that of another one until now where it has none.
func (c *segments) take(ref format.Ref) *slot {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.slots, func(s *slot) bool { return s.ref == ref })
	if i < 0 && len(c.slots) >= segmentsKept {
		for i = len(c.slots) - 1; i >= 0 && c.slots[i].users > 0; i-- {
		}
	}
	var s *slot
	if i < 0 {
		s = &slot{ref: ref}
	} else {
		s = c.slots[i]
		c.slots = slices.Delete(c.slots, i, i+1)
	}
	if s.ref != ref {
		s.ref, s.plain = ref, nil
	}
	s.users++
	c.slots = slices.Insert(c.slots, 0, s)
	return s
}

// leave ends a use. Where all were in use at once there are too many slots now.
func (c *segments) leave(s *slot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.users--; s.users == 0 && len(c.slots) > segmentsKept {
		c.slots = slices.DeleteFunc(c.slots, func(t *slot) bool { return t == s })
	}
}

// copySegment copies bytes of a segment that is no page, from at on, into p.
func (v *Vault) copySegment(ctx context.Context, ref format.Ref, at int64, p []byte) error {
	if at == 0 && len(p) == format.ChunkSize { // all of a chunk, mostly
		b, err := v.segment(ctx, ref, false, p)
		if err != nil {
			return err
		}
		return part(ref, b, 0, p)
	}
	return v.segments.copy(ref, at, p, func(room []byte) ([]byte, error) { return v.segment(ctx, ref, false, room) })
}
