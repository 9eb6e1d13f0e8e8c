package vault

import (
	"context"
	"errors"
	"maps"
	"slices"

	format "tidemark/format/vault"
	"tidemark/vault/store"
)

const (
	// mostly is when a pack is rewritten: when what is needed is less than that part of it.
	mostly = 2
	// What is read at once of a pack that is rewritten, in bytes; and what may lie between two
	// segments that are read together.
	rangeMost, gapMost = 4 << 20, 64 << 10
)

// rewrite writes the next generation of a pack that is mostly not needed, and reports whether it
// did. The one before is then like any other that is not needed.
func (s *sweep) rewrite(ctx context.Context, t *table, newest generation) (bool, error) {
	var keep []format.Segment
	for _, segment := range t.Segments {
		if s.live.has(format.Ref{Pack: t.name.ID, Segment: segment.Number}) {
			keep = append(keep, segment)
		}
	}
	size := format.GenerationSize(keep)
	if len(keep) == 0 || size > t.size/mostly || s.busy(newest) {
		s.done.Unused += t.size - size
		return false, nil
	}
	p := s.v.keys.NextGeneration(format.PackName{ID: t.name.ID, Generation: t.name.Generation + 1})
	if !s.o.DryRun {
		err := s.v.sound(ctx, t, keep, p.Keep)
		if err != nil && ours(err) { // Verify tells of it, and Repair mends what can be
			s.done.Unused += t.size - size
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	return s.put(ctx, p, size)
}

// rescue writes a generation that has what points need of older ones and the newest has not, and
// reports whether it did.
func (s *sweep) rescue(ctx context.Context, newest *table, older []generation) (bool, error) {
	from := map[uint32]*table{}
	for _, g := range older {
		t, err := s.v.exactTable(ctx, g.known)
		if err != nil && ours(err) {
			continue
		} else if err != nil {
			return false, err
		}
		for _, segment := range t.Segments {
			_, there := newest.Find(segment.Number)
			if !there && from[segment.Number] == nil && s.live.has(format.Ref{Pack: t.name.ID, Segment: segment.Number}) {
				from[segment.Number] = t
			}
		}
	}
	if len(from) == 0 {
		return false, nil
	}
	for _, segment := range newest.Segments {
		from[segment.Number] = newest
	}
	p := s.v.keys.NextGeneration(format.PackName{ID: newest.name.ID, Generation: newest.name.Generation + 1})
	var size int64
	for _, number := range slices.Sorted(maps.Keys(from)) {
		t := from[number]
		segment, _ := t.Find(number)
		size += segment.Stored
		if s.o.DryRun {
			continue
		}
		err := s.v.sound(ctx, t, []format.Segment{segment}, p.Keep)
		if err != nil && !ours(err) {
			return false, err
		}
	}
	if p.Empty() && !s.o.DryRun {
		return true, nil
	}
	_, err := s.put(ctx, p, size)
	return true, err
}

// put puts a generation. Where another prune has put one of that number its own stays, and is judged by
// the next prune.
func (s *sweep) put(ctx context.Context, p *format.Pack, size int64) (bool, error) {
	if !s.o.DryRun {
		err := s.v.putPack(ctx, p)
		if errors.Is(err, store.ErrExists) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	s.done.Rewritten++
	s.done.Written += size
	return true, nil
}

// putPack puts a generation of a pack, and lets the index know.
func (v *Vault) putPack(ctx context.Context, p *format.Pack) error {
	b := p.End(newSalt())
	k := known{p.Name(), int64(len(b))}
	if err := v.store.Put(ctx, k.name.String(), b); err != nil {
		return err
	}
	return v.index.renew(&table{known: k, Table: format.Table{Name: k.name, Segments: p.Segments()}})
}

// sound calls each for the stored bytes of segments of a pack, in their order. Their seals hold.
func (v *Vault) sound(ctx context.Context, t *table, all []format.Segment, each func(format.Segment, []byte)) error {
	opener := v.keys.Opener(t.name.ID)
	room := make([]byte, format.MaxSegment)
	for len(all) > 0 {
		start, n := all[0].Place, 1
		end := start + all[0].Stored
		for n < len(all) && all[n].Place-end <= gapMost && all[n].Place+all[n].Stored-start <= rangeMost {
			end = all[n].Place + all[n].Stored
			n++
		}
		b, err := v.store.Get(ctx, t.name.String(), start, end-start, nil)
		if err != nil {
			return err
		}
		for _, s := range all[:n] {
			from := min(s.Place-start, int64(len(b)))
			stored := b[from:min(from+s.Stored, int64(len(b)))]
			if _, err := opener.Open(v.codec, s, stored, room); err != nil {
				return err
			}
			each(s, stored)
		}
		all = all[n:]
	}
	return nil
}
