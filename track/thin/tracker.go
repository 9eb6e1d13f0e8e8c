package thin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"tidemark/extent"
	"tidemark/format/thin"
	"tidemark/linux/atomicfile"
	"tidemark/linux/dmthin"
	"tidemark/track"
	"tidemark/track/history"
)

// Tracker is the tracker of one source of a Group.
type Tracker struct {
	group  *Group
	volume *volume
}

// Tracker returns the tracker of source i, which is good until the Group is closed.
func (g *Group) Tracker(i int) *Tracker {
	return &Tracker{group: g, volume: g.volumes[i]}
}

// Kind returns "thin".
func (t *Tracker) Kind() string { return Kind }

// Granularity returns the size of the pool's blocks in bytes.
func (t *Tracker) Granularity() int64 { return t.volume.pool.BlockSize }

// Traits says that changes can be named, and that a cut is made at the instant of a view alone.
func (t *Tracker) Traits() track.Traits {
	return track.Traits{NamesChanges: true, OnlyAtInstant: true}
}

// Cut returns the mark of the view that is being taken.
func (t *Tracker) Cut(context.Context) (track.Cut, error) {
	if t.volume.newest == nil {
		return track.Cut{}, fmt.Errorf("track: %s: a thin snapshot is cut by the view %q alone", t.volume.Path(), Kind)
	}
	return track.Cut{Mark: t.volume.newest.record.mark()}, nil
}

// snapshotOf returns the record of the snapshot of a mark.
func (t *Tracker) snapshotOf(m track.Mark) (record, error) {
	at, err := history.ParseMark(m, Kind)
	if err == nil && at != (history.Moment{Generation: at.Generation, Epoch: 1}) {
		err = fmt.Errorf("track: %q: %w", string(m), track.ErrBadMark)
	}
	if err != nil {
		return record{}, err
	}
	r, err := t.group.records().read(at.Generation)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return r, track.Lost("nothing is known of its snapshot")
	case errors.Is(err, atomicfile.ErrDamaged):
		return r, track.Lost("%v", err)
	case err == nil && r.Pool != poolID(t.volume.pool):
		return r, track.Lost("it is of the pool %s, and the volume is in %s", r.PoolName, t.volume.pool.Name)
	}
	return r, err
}

// Changes returns the blocks that are others in the snapshots of two marks, clipped to the source.
// Without until it is the volume as it is now.
func (t *Tracker) Changes(ctx context.Context, since, until track.Mark) (extent.Set, error) {
	if since == "" {
		return extent.NewSet(extent.Extent{Len: t.volume.Size()}), nil
	}
	set, err := t.changes(ctx, since, until)
	return set, track.About(since, err)
}

func (t *Tracker) changes(ctx context.Context, since, until track.Mark) (set extent.Set, err error) {
	before, err := t.snapshotOf(since)
	if err != nil {
		return set, err
	}
	if before.ID == t.volume.thin.ID {
		return set, track.Lost("its snapshot, device %d of the pool %s, has become the volume itself", before.ID, before.PoolName)
	}
	after := record{ID: t.volume.thin.ID}
	if until != "" {
		if after, err = t.snapshotOf(until); err != nil {
			return set, err
		}
	}
	err = t.group.metadata(ctx, t.volume.pool, func(m *dmthin.Held) error {
		roots := [2]thin.Addr{}
		for i, r := range []record{before, after} {
			d, err := m.View.Device(r.ID)
			if errors.Is(err, thin.ErrNoDevice) {
				return track.Lost("its snapshot, device %d of the pool %s, is gone", r.ID, t.volume.pool.Name)
			}
			if err == nil && (i == 0 || until != "") {
				err = r.untouched(d)
			}
			if err != nil {
				return err
			}
			roots[i] = d.Root
		}
		set, err = t.delta(ctx, m, roots, before)
		return err
	})
	return set, err
}

func (t *Tracker) delta(ctx context.Context, m *dmthin.Held, roots [2]thin.Addr, before record) (extent.Set, error) {
	var found []extent.Extent
	block, size := t.volume.pool.BlockSize, t.volume.Size()
	err := m.Delta(roots[0], roots[1], true, func(d thin.Difference) error {
		if d.Kind != thin.RightOnly && d.LeftTime >= before.Created {
			return track.Lost("its snapshot, device %d of the pool %s, was written to", before.ID, before.PoolName)
		}
		if off := int64(d.Begin) * block; off < size {
			found = append(found, extent.Extent{Off: off, Len: min(int64(d.Len)*block, size-off)})
		}
		return context.Cause(ctx)
	})
	return extent.NewSet(found...), err
}

// Vouch asks for the changes since m until now.
func (t *Tracker) Vouch(ctx context.Context, m track.Mark) error {
	_, err := t.Changes(ctx, m, "")
	return err
}

// Drain does nothing: a snapshot is made while nothing is in flight.
func (t *Tracker) Drain(context.Context) error { return nil }

// Persist does nothing: what has changed is in the pool's metadata.
func (t *Tracker) Persist(context.Context) error { return nil }

// Keep keeps the snapshot of m, and removes the owner's others, but for one that is being read. What
// cannot be removed now is by the owner's next Keep.
func (t *Tracker) Keep(ctx context.Context, owner string, m track.Mark, _ bool) error {
	if m != "" {
		r, err := t.snapshotOf(m)
		if err != nil {
			return track.About(m, err)
		}
		t.group.kept[r.Generation] = true
	}
	list, err := t.group.records().of(owner)
	for _, r := range list {
		if newest := t.volume.newest; r.mark() == m || newest != nil && r.Generation == newest.record.Generation {
			continue
		}
		if derr := t.group.drop(ctx, r); derr != nil {
			t.group.o.Note("%v", derr)
		}
	}
	if err != nil {
		t.group.o.Note("%v", err)
	}
	return nil
}

// Close does nothing: the Group is closed by who opened it.
func (t *Tracker) Close() error { return nil }
