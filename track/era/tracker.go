// Package era is the tracker of dm-era devices: their metadata remembers when each block
// was last written, over reboots and power cuts.
//
// For most uses, open the device with package block, for direct I/O, call [Open], then
// the methods of track.Tracker, and close the tracker before the device. A caller that
// copies while the device is in use must call Drain, as its Traits say.
//
// This package owns the question whether metadata is still that of a mark, and its
// history without a gap. The device in the kernel is package linux/dmera's. It refuses
// devices that take discards, of which dm-era remembers only the first block, whose
// metadata is nearly full, or whose statistics are off. A Tracker may be used by several
// goroutines, and several processes may ask one device.
//
// # State
//
// What is remembered of a device survives a reboot, and is synced:
//
//	<StateDir>/era/<device>.json   what tells its metadata from any other
//
// The folder is locked while such a file is replaced.
package era

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/format/era"
	"tidemark/linux/dmera"
	"tidemark/track"
	"tidemark/track/history"
)

// Kind is the kind of the tracker and of its marks.
const Kind = "era"

// DefaultStateDir is where what must survive a reboot lives by default.
const DefaultStateDir = "/var/lib/tidemark"

var (
	// ErrDiscards refuses a device that takes discards: dm-era remembers only the
	// first block of one.
	ErrDiscards = errors.New("the era device takes discards, of which dm-era remembers only the first block")
	// ErrUnfit refuses a device on which nothing can be asked safely.
	ErrUnfit = errors.New("the era device cannot be asked")
)

// lastEra is the newest era that is still vouched for. The kernel's counter has 32
// bits and begins anew at 0 without a word.
const lastEra = math.MaxUint32 - 1<<16

// Options tell where the state lives. The zero value works.
type Options struct {
	RunDir   string // of the lock of metadata snapshots; /run/tidemark when empty
	StateDir string // DefaultStateDir when empty; survives a reboot
	// StableName names a device by what it is, in words that a reboot does not
	// change; "" where that cannot be told. Nil names none.
	StableName func(path string) string
}

func (o Options) withDefaults() Options {
	if o.StateDir == "" {
		o.StateDir = DefaultStateDir
	}
	if o.StableName == nil {
		o.StableName = func(string) string { return "" }
	}
	return o
}

// Tracker is the tracker of a dm-era device. A mark is the number of an era.
//
// # Why no write is lost
//
// The kernel has the mark of a write in the metadata on the disk before the write goes
// down (package dmera), so a write counts in an era that began before it was queued to
// the data device. Cut begins an era E; what is queued later counts in E or later, and
// Changes since E names it. What was queued before Cut may end after it and is not named
// again: a mark is worth keeping only when nothing was in flight at it, or when Drain was
// called between it and the first read.
//
// Whether the metadata is still that of the mark, and its history without a gap, is what
// a lineage is for.
type Tracker struct {
	name   string
	o      Options
	kernel kernel

	mu      sync.Mutex
	lin     lineage
	known   string     // id of the lineage that was on disk
	judged  bool       // lin has been compared with the metadata
	dirty   bool       // lin is to be written down
	snap    snapshot   // held; nil mostly
	written extent.Set // named by Changes since this Tracker was opened
	still   track.Mark // nothing was written from it until snap was taken
	closed  bool
}

// Open returns the tracker of an opened dm-era device, which must stay open for as long
// as the tracker is, and must have been opened for direct I/O. Nothing is taken or
// written yet. The error wraps dmera.ErrNotEra when it is none, ErrDiscards when it takes
// discards, ErrUnfit when its metadata is nearly full or its statistics are off,
// dmera.ErrHeld when another program has a metadata snapshot and keeps it.
func Open(ctx context.Context, source *block.Device, o Options) (*Tracker, error) {
	o = o.withDefaults()
	k, err := openMapped(ctx, source, o)
	if err != nil {
		return nil, err
	}
	t, err := newTracker(ctx, source.Path(), o, k)
	if err != nil {
		return nil, errors.Join(err, k.Close())
	}
	return t, nil
}

func newTracker(ctx context.Context, name string, o Options, k kernel) (*Tracker, error) {
	now, err := k.now(ctx)
	if err != nil {
		return nil, err
	}
	if err := now.fit(); err != nil {
		return nil, fmt.Errorf("track: %s: %w", name, err)
	}
	t := &Tracker{name: name, o: o, kernel: k}
	t.lin, err = loadLineage(o.StateDir, now.key())
	if err != nil {
		return nil, err
	}
	t.known = t.lin.ID
	if err := k.prepare(ctx); err != nil {
		return nil, fmt.Errorf("track: %s: %w", name, err)
	}
	return t, nil
}

// Kind returns "era".
func (t *Tracker) Kind() string { return Kind }

// Granularity returns the size of a block in bytes, a multiple of 4096 and not always a
// power of two.
func (t *Tracker) Granularity() int64 { return t.kernel.BlockSize() }

// Traits says that changes can be named, and that Drain is needed.
func (t *Tracker) Traits() track.Traits { return track.Traits{NamesChanges: true, NeedsDrain: true} }

// MetaPath returns a path of the metadata device, which Cut and Changes write to.
func (t *Tracker) MetaPath() string { return t.kernel.MetaPath() }

// Cut begins an era. After Persist, it writes to the metadata device alone. What was
// written to the source before it survives a power cut. The error wraps
// track.ErrMarkLost when the device has become another one, or was resized. While the device is
// suspended, after an earlier Cut, it writes nothing: the mark is the era that begins when it goes on.
func (t *Tracker) Cut(ctx context.Context) (track.Cut, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	next, suspended, err := t.kernel.standing()
	if err == nil && suspended && !t.judged {
		err = dmera.ErrSuspended
	}
	if err != nil {
		return track.Cut{}, fmt.Errorf("track: %s: %w", t.name, err)
	}
	if suspended {
		return track.Cut{Mark: t.mark(uint64(next))}, nil
	}
	if err := t.kernel.flush(); err != nil {
		return track.Cut{}, fmt.Errorf("track: %s: %w", t.name, err)
	}
	if err := t.take(ctx); err != nil {
		return track.Cut{}, err
	}
	return track.Cut{Mark: t.mark(uint64(t.snap.Era()))}, nil
}

func (t *Tracker) mark(n uint64) track.Mark {
	return history.Moment{Generation: t.lin.ID, Epoch: n}.Mark(Kind)
}

// take takes a snapshot in place of the one that is held, and compares the lineage with
// what is there now. The first time, a lineage that cannot be gone on with gives way to a
// new one; after that it is an error.
func (t *Tracker) take(ctx context.Context) error {
	now, err := t.retake(ctx)
	if err != nil {
		return err
	}
	why := t.lin.parted(now)
	if why == "" && !t.judged {
		if why, err = t.compare(ctx, now); err != nil {
			return err
		}
	}
	if why != "" {
		if t.judged {
			return track.Lost("%s", why)
		}
		if t.lin, err = newLineage(ctx, now, t.snap, why); err != nil {
			return err
		}
	}
	t.judged, t.dirty = true, true
	t.lin.Facts, t.lin.Newest = now.stable(), max(t.lin.Newest, uint64(t.snap.Era()))
	return nil
}

// compare says in words why the metadata and the source are not those of the lineage.
// Bytes that changed may have been written just now: a second snapshot tells.
func (t *Tracker) compare(ctx context.Context, now facts) (string, error) {
	why, moved, err := t.lin.unlike(now, t.snap, t.kernel)
	if why != "" || err != nil || len(moved) == 0 {
		return why, err
	}
	if _, err := t.retake(ctx); err != nil {
		return "", err
	}
	same, why, err := t.lin.unwritten(moved, t.snap)
	if err == nil && why == "" && len(same) > 0 {
		why = fmt.Sprintf("block %d of the data has changed, and not through the era device: something wrote past it", same[0].Block)
	}
	return why, err
}

// retake takes a snapshot in place of the one that is held, and returns what the device
// was just before.
func (t *Tracker) retake(ctx context.Context) (facts, error) {
	t.still = ""
	now, err := t.kernel.now(ctx)
	if err != nil {
		return now, err
	}
	if err := now.room(); err != nil {
		return now, fmt.Errorf("track: %s: %w", t.name, err)
	}
	if t.snap != nil {
		err = t.snap.Retake(ctx)
	} else {
		t.snap, err = t.kernel.take(ctx)
	}
	if err != nil {
		return now, err
	}
	if n := uint64(t.snap.Era()); n > lastEra {
		return now, track.Lost("the era counter is at %d, near its end: make new metadata", n)
	}
	return now, nil
}

// drop lets go of the held snapshot, and of the right to take one. It writes files.
func (t *Tracker) drop() error {
	var err error
	if t.snap != nil {
		err = t.snap.Close()
	}
	t.snap, t.still = nil, ""
	return errors.Join(err, t.kernel.Unprepare())
}

// Changes returns the bytes of the device in blocks that were written in an era from
// since on; an empty since means all bytes. The set may hold more than what was written
// before until, never less; an empty until is now, and ends an era.
func (t *Tracker) Changes(ctx context.Context, since, until track.Mark) (extent.Set, error) {
	if since == "" {
		return extent.NewSet(extent.Extent{Len: t.kernel.Size()}), nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	set, err := t.changes(ctx, since, until)
	return set, track.About(since, err)
}

func (t *Tracker) changes(ctx context.Context, since, until track.Mark) (set extent.Set, err error) {
	held := t.snap != nil && until != "" && until == t.mark(uint64(t.snap.Era()))
	if !held {
		if err := t.take(ctx); err != nil {
			return set, err
		}
	}
	from, err := t.eraOf(since)
	if err != nil {
		return set, err
	}
	if until != "" {
		to, err := t.eraOf(until)
		if err != nil {
			return set, err
		}
		if from > to {
			return set, fmt.Errorf("track: changes from %s to %s: in the wrong order", since, until)
		}
	}
	if set, err = t.snap.Changed(ctx, era.Era(from)); err != nil {
		return set, err
	}
	t.written = t.written.Union(set)
	if until == "" && set.Empty() {
		t.still = since
	}
	return set, nil
}

// Vouch returns nil when Changes since m could be told now. It takes a snapshot of the
// metadata, which Persist, Keep and Close let go of, and so ends an era.
func (t *Tracker) Vouch(ctx context.Context, m track.Mark) error {
	if m == "" {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.take(ctx)
	if err == nil {
		_, err = t.eraOf(m)
	}
	return track.About(m, err)
}

// eraOf returns the era of one of this lineage's marks.
func (t *Tracker) eraOf(m track.Mark) (uint64, error) {
	at, err := parse(m)
	switch {
	case err != nil:
		return 0, err
	case at.Generation != t.lin.ID:
		return 0, track.Lost("it is of another history of this device than that of now, which began at %s", t.lin.began())
	case at.Epoch > uint64(t.snap.Era()):
		return 0, track.Lost("it is of era %d, and the metadata is at %d: it was put back to an earlier state", at.Epoch, uint64(t.snap.Era()))
	}
	return at.Epoch, nil
}

// parse reads a mark: the generation is a lineage, the epoch an era.
func parse(m track.Mark) (history.Moment, error) {
	at, err := history.ParseMark(m, Kind)
	if err == nil && (at.Epoch > math.MaxUint32 || at.Slice != (extent.Extent{})) {
		err = fmt.Errorf("track: %q: %w", string(m), track.ErrBadMark)
	}
	return at, err
}

// Drain waits for the writes that were queued before, whether they came through a
// filesystem or not. The device is suspended for a moment, by a process of its own: the
// program's main must do what dmera.Device.Drain says. The snapshot is let go of, because
// a copy may take long.
func (t *Tracker) Drain(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.drop(); err != nil {
		return err
	}
	return t.kernel.drain(ctx)
}

// Persist lets go of the snapshot, so that the metadata does not grow, writes down what
// is known of its history, and prepares the next Cut.
func (t *Tracker) Persist(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := errors.Join(t.drop(), t.save(ctx)); err != nil {
		return err
	}
	return t.kernel.prepare(ctx)
}

// Keep writes down what tells this metadata from any other, and lets go of the snapshot.
// The history itself is kept for ever, for any owner.
//
// Keep does not find out whether a write was in flight at m, with quiet or without. The
// caller must know that none was, or have called Drain between m and the first read:
// otherwise such a write is missing in Changes since m. The error wraps
// track.ErrMarkLost when m is lost already.
func (t *Tracker) Keep(ctx context.Context, _ string, m track.Mark, quiet bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m == "" {
		return nil
	}
	if at, err := parse(m); err != nil {
		return err
	} else if at.Generation != t.lin.ID {
		return &track.LostError{Mark: m, Reason: "its history has ended"}
	}
	if t.snap != nil && quiet && t.still == m {
		if err := t.lin.renew(t.snap, t.written, t.kernel); err != nil {
			return errors.Join(err, t.drop())
		}
		t.dirty = true
	}
	return errors.Join(t.drop(), t.save(ctx))
}

// save writes the lineage down, unless another process has begun one meanwhile.
func (t *Tracker) save(ctx context.Context) error {
	if !t.dirty {
		return nil
	}
	if err := t.lin.save(ctx, t.o.StateDir, t.known); err != nil {
		return err
	}
	t.known, t.dirty = t.lin.ID, false
	return nil
}

// Close lets go of the device. The kernel goes on. A second call does nothing.
func (t *Tracker) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	return errors.Join(t.drop(), t.kernel.Close())
}
