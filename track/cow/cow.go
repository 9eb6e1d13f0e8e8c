// Package cow is the tracker of the origin of a dm-snapshot: the exceptions in the snapshot's
// store are what changed since the snapshot was made.
//
// For most uses, open the source with package block, call [Open] with the path of the store or
// of the snapshot, then the methods of track.Tracker, and close the tracker before the source.
//
// This package owns the question whether a store still tells of all writes since a mark.
// The devices in the kernel are package linux/dmsnap's, the format of the store is package
// format/snapstore's. It refuses a source whose writes the kernel does not copy to the store,
// a store that is not live, and a snapshot that is invalid, overflowed, merging, or without a
// persistent store. It keeps no state. A Tracker may be used by several goroutines, and several
// processes may ask one snapshot.
//
// # Why no write is lost
//
// As in drivers/md/dm-snap.c and dm-snap-persistent.c of Linux 6.1 to 6.12.
//
// The first write to a chunk of the origin, through its device of the target
// snapshot-origin, waits until the old content is in the store and the exception that says
// so is on the disk (pending_complete is called by persistent_commit_exception's callback);
// only then it goes down. So at every moment the exceptions on the disk name each chunk that a
// write may have reached since the snapshot was made. Nothing takes an exception away but a
// merge, and a store that has no room for one more makes the snapshot invalid, for good, before
// that write goes down. They are read past the page cache, in which the kernel does not write.
//
// A chunk has one exception, however often it is written to. So Changes since a mark are
// all exceptions there are, as long as the snapshot was there already at the mark: too many, and
// never too few. A write in flight at the mark is no matter either, for its chunk is named
// again the next time.
//
// What may not pass is a snapshot that is another one than at the mark, or had a gap. The life
// that is in each mark is made of the boot, and of the kernel's sequence numbers, which are
// never used twice, of all four devices: the snapshot, its store, the origin, and what lies below
// that. Each time that LVM or dmsetup removes a snapshot and makes another, or activates the same
// one again, these are new, and the marks are lost. They are when the machine is booted, too:
// whether the origin was written to without its snapshot cannot be told. What no kernel tells is
// whether somebody has put other tables into these same devices for a while and then the
// old ones again (dmsetup load and resume), or has written to what lies below the origin.
//
// A run has to know whether anything was written between two moments of its own. For that the
// kernel's counters of the origin are compared, and its writes in flight. They serve for marks
// that this very Tracker has made, and for no others: somebody may have switched them off for a
// while.
package cow

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/linux/dm"
	"tidemark/linux/sysfs"
	"tidemark/track"
	"tidemark/track/history"
)

// Kind is the kind of the tracker and of its marks.
const Kind = "cow"

var (
	// ErrNoSnapshot says that no live snapshot uses what was given as its store: what was
	// written to the origin since it had one cannot be told.
	ErrNoSnapshot = errors.New("not the store of a live snapshot")
	// ErrNotOrigin says that the source is not the device through which the origin is written.
	ErrNotOrigin = errors.New("not the origin of the snapshot")
	// ErrUnfit says that the store does not tell of all writes to its origin.
	ErrUnfit = errors.New("the snapshot does not tell of all writes")
)

// Tracker is the tracker of the origin of a live snapshot.
type Tracker struct {
	source *block.Device
	ctl    *dm.Control
	store  *block.Device
	found  devices
	life   string

	mu    sync.Mutex
	last  uint64            // epoch of the newest mark
	marks map[uint64]uint64 // sectors written, by the epochs of marks at which nothing was in flight
}

// Open returns the tracker of an opened source, which must stay open for as long as the tracker
// is. store is the path of the store's device, or of the snapshot. The error wraps ErrNoSnapshot,
// ErrNotOrigin or ErrUnfit.
func Open(source *block.Device, store string) (*Tracker, error) {
	ctl, err := dm.Open()
	if err != nil {
		return nil, fmt.Errorf("track: %w", err)
	}
	t := &Tracker{source: source, ctl: ctl, marks: map[uint64]uint64{}}
	if err := t.open(store); err != nil {
		return nil, errors.Join(err, ctl.Close())
	}
	return t, nil
}

func (t *Tracker) open(store string) (err error) {
	if t.found, err = find(t.ctl, t.source, store); err != nil {
		return err
	}
	if t.life, err = t.found.life(); err != nil {
		return err
	}
	if _, err := t.source.Counters(); errors.Is(err, block.ErrNoCounters) {
		return fmt.Errorf("track: %s: %w: whether it is written to at a moment cannot be told (echo 1 >%s/queue/iostats): %w",
			t.source.Path(), ErrUnfit, sysfs.DiskDir(t.source.Identity().Disk), err)
	} else if err != nil {
		return fmt.Errorf("track: %w", err)
	}
	node, err := sysfs.Node(t.found.snapshot.Store)
	if err != nil {
		return fmt.Errorf("track: %w", err)
	}
	if t.store, err = block.Open(node, block.Options{Direct: true}); err != nil {
		return fmt.Errorf("track: %w", err)
	}
	if _, err := t.openStore(); err != nil {
		return errors.Join(err, t.store.Close())
	}
	return nil
}

// Kind returns "cow".
func (t *Tracker) Kind() string { return Kind }

// Granularity returns the size of a chunk in bytes.
func (t *Tracker) Granularity() int64 { return t.found.snapshot.ChunkSize }

// Traits says that changes can be named.
func (t *Tracker) Traits() track.Traits { return track.Traits{NamesChanges: true} }

// Beginning returns the mark of the moment at which the snapshot was made.
func (t *Tracker) Beginning() track.Mark {
	return history.Moment{Generation: t.life, Epoch: 1}.Mark(Kind)
}

// now returns nil when the devices are those that were opened, and the snapshot is valid: then
// the exceptions that were read before are all that there were.
func (t *Tracker) now() error {
	found, err := find(t.ctl, t.source, t.found.path)
	var life string
	if err == nil {
		life, err = found.life()
	}
	switch {
	case errors.Is(err, ErrNoSnapshot), errors.Is(err, ErrNotOrigin), errors.Is(err, ErrUnfit):
		return track.Lost("%v", err)
	case err != nil:
		return err
	case life != t.life:
		return track.Lost("%s has become another snapshot", t.found.snapshot.Path())
	}
	return nil
}

// Cut notes what the origin's counters are. The error wraps track.ErrMarkLost when the snapshot
// has become invalid or another.
func (t *Tracker) Cut(context.Context) (track.Cut, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.now(); err != nil {
		return track.Cut{}, err
	}
	written, err := t.written()
	if err != nil {
		return track.Cut{}, err
	}
	// After the counters: a write that begins in between is not in them, or has ended.
	busy, err := t.busy()
	if err != nil {
		return track.Cut{}, err
	}
	t.last = max(t.last+1, uint64(time.Now().UnixNano()))
	if !busy {
		t.marks[t.last] = written
	}
	return track.Cut{Mark: history.Moment{Generation: t.life, Epoch: t.last}.Mark(Kind)}, nil
}

// written returns how many sectors the kernel has counted as written or discarded.
func (t *Tracker) written() (uint64, error) {
	c, err := t.source.Counters()
	if err != nil {
		return 0, fmt.Errorf("track: %w", err)
	}
	return c.Written + c.Discarded, nil
}

// busy reports whether writes to the origin are in flight.
func (t *Tracker) busy() (bool, error) {
	n, err := sysfs.WritesInFlight(t.source.Identity().Dev().Dir())
	if err != nil {
		return true, fmt.Errorf("track: %w", err)
	}
	return n > 0, nil
}

// Changes returns the chunks of which the store has an exception, clipped to the source; none
// when nothing was written to the source between two marks of this Tracker. An empty since
// means all bytes.
func (t *Tracker) Changes(ctx context.Context, since, until track.Mark) (extent.Set, error) {
	if since == "" {
		return extent.NewSet(extent.Extent{Len: t.source.Size()}), nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	set, err := t.changes(ctx, since, until)
	return set, track.About(since, err)
}

func (t *Tracker) changes(ctx context.Context, since, until track.Mark) (extent.Set, error) {
	from, err := t.epochOf(since)
	if err != nil {
		return extent.Set{}, err
	}
	still, err := t.still(from, until)
	if err != nil {
		return extent.Set{}, err
	}
	var set extent.Set
	if !still {
		set, err = t.exceptions(ctx)
	}
	// After the reading. The store of a snapshot that is lost may be unreadable, too.
	if lost := t.now(); lost != nil {
		return extent.Set{}, lost
	}
	return set, err
}

// still reports whether nothing was written to the source from an epoch of this Tracker until
// another, or now.
func (t *Tracker) still(from uint64, until track.Mark) (bool, error) {
	began, known := t.marks[from]
	if until != "" {
		to, err := t.epochOf(until)
		if err != nil {
			return false, err
		}
		ended, too := t.marks[to]
		return known && too && began == ended, nil
	}
	if !known {
		return false, nil
	}
	// Before the counters: a write that ends in between is in them.
	busy, err := t.busy()
	if busy || err != nil {
		return false, err
	}
	ended, err := t.written()
	return began == ended, err
}

// epochOf returns the epoch of a mark of this life.
func (t *Tracker) epochOf(m track.Mark) (uint64, error) {
	at, err := history.ParseMark(m, Kind)
	if err == nil && at.Slice != (extent.Extent{}) {
		err = fmt.Errorf("track: %q: %w", string(m), track.ErrBadMark)
	}
	if err == nil && at.Generation != t.life {
		err = track.Lost("it is of another snapshot than %s, or of one that was taken down and activated again since", t.found.snapshot.Path())
	}
	return at.Epoch, err
}

// Vouch returns nil when Changes since m could be told now.
func (t *Tracker) Vouch(_ context.Context, m track.Mark) error {
	if m == "" {
		return nil
	}
	_, err := t.epochOf(m)
	if err == nil {
		err = t.now()
	}
	return track.About(m, err)
}

// Drain does nothing: what a write in flight changes is named again.
func (t *Tracker) Drain(context.Context) error { return nil }

// Persist does nothing.
func (t *Tracker) Persist(context.Context) error { return nil }

// Keep does nothing but look at the mark: the store is the history. The error wraps
// track.ErrMarkLost when m is lost already.
func (t *Tracker) Keep(_ context.Context, _ string, m track.Mark, _ bool) error {
	if m == "" {
		return nil
	}
	_, err := t.epochOf(m)
	return track.About(m, err)
}

// Close lets go of the store. The snapshot goes on.
func (t *Tracker) Close() error { return errors.Join(t.store.Close(), t.ctl.Close()) }
