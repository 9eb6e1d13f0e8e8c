package track

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"

	"tidemark/extent"
)

var (
	// ErrDiscards refuses an era device that takes discards: dm-era remembers only
	// the first block of one.
	ErrDiscards = errors.New("the era device takes discards, of which dm-era remembers only the first block")
	// ErrEraUnfit refuses an era device on which nothing can be asked safely.
	ErrEraUnfit = errors.New("the era device cannot be asked")
)

// lastEra is the newest era that is still vouched for. The kernel's counter has 32
// bits and begins anew at 0 without a word.
const lastEra = math.MaxUint32 - 1<<16

// EraOptions tell an Era where its state lives. The zero value works where nothing
// is mounted from the device.
type EraOptions struct {
	RunDir   string // DefaultRunDir when empty
	StateDir string // DefaultStateDir when empty; survives a reboot
	// StableName names a device by what it is, in words that a reboot does not
	// change; "" where that cannot be told. Nil names none.
	StableName func(path string) string
}

// Era is the tracker of a dm-era device: its metadata remembers when each block was
// last written, also over reboots and power cuts. A mark is the number of an era.
//
// # Why no write is lost
//
// The kernel has the mark of a write in the metadata on the disk before the write
// goes down (package dmera), so a write counts in an era that began before it was
// queued to the data device. Cut begins an era E; what is queued later counts in E
// or later, and Changes since E names it. What was queued before Cut may end after
// it and is not named again: therefore a mark is worth keeping only when nothing is
// in flight, and whoever copies while the device is in use calls Drain between Cut
// and the first read.
//
// Whether the metadata is still that of the mark, and its history without a gap, is
// what a lineage is for.
type Era struct {
	source string
	o      EraOptions
	kernel eraKernel

	mu      sync.Mutex
	lin     lineage
	known   string      // id of the lineage that was on disk
	judged  bool        // lin has been compared with the metadata
	dirty   bool        // lin is to be written down
	snap    eraSnapshot // held; nil mostly
	written extent.Set  // named by Changes since this Era was opened
	quiet   Mark        // nothing was written from it until snap was taken
	settled Mark        // nothing was in flight at it
	closed  bool
}

// OpenEra returns the tracker of the dm-era device at source. Nothing is taken or
// written yet. The error wraps dmera.ErrNotEra when it is none, ErrDiscards when it
// takes discards, ErrEraUnfit when its metadata is nearly full or its statistics
// are off, dmera.ErrHeld when another program has a metadata snapshot and keeps it.
func OpenEra(ctx context.Context, source string, o EraOptions) (*Era, error) {
	o = o.withDefaults()
	k, err := openMapped(source, o)
	if err != nil {
		return nil, err
	}
	e, err := newEra(ctx, source, o, k)
	if err != nil {
		return nil, errors.Join(err, k.Close())
	}
	return e, nil
}

func (o EraOptions) withDefaults() EraOptions {
	if o.RunDir == "" {
		o.RunDir = DefaultRunDir
	}
	if o.StateDir == "" {
		o.StateDir = DefaultStateDir
	}
	if o.StableName == nil {
		o.StableName = func(string) string { return "" }
	}
	return o
}

func newEra(ctx context.Context, source string, o EraOptions, k eraKernel) (*Era, error) {
	now, err := k.now(ctx)
	if err != nil {
		return nil, err
	}
	if err := now.fit(); err != nil {
		return nil, fmt.Errorf("track: %s: %w", source, err)
	}
	e := &Era{source: source, o: o, kernel: k}
	e.lin, err = loadLineage(o.StateDir, now.key())
	if err != nil {
		return nil, err
	}
	e.known = e.lin.ID
	if err := k.prepare(ctx); err != nil {
		return nil, fmt.Errorf("track: %s: %w", source, err)
	}
	return e, nil
}

// Kind returns "era".
func (e *Era) Kind() string { return KindEra }

// Granularity returns the size of a block in bytes, a multiple of 4096 and not
// always a power of two.
func (e *Era) Granularity() int64 { return e.kernel.blockSize() }

// MetaPath returns a path of the metadata device, which Cut and Changes write to.
func (e *Era) MetaPath() string { return e.kernel.metaPath() }

// Cut begins an era. After Persist, it writes to the metadata device alone. What was
// written to the source before it survives a power cut. The error wraps ErrMarkLost when the
// device has become another one, or was resized.
func (e *Era) Cut(ctx context.Context) (Cut, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.kernel.flush(); err != nil {
		return Cut{}, fmt.Errorf("track: %s: %w", e.source, err)
	}
	if err := e.take(ctx); err != nil {
		return Cut{}, err
	}
	return Cut{Mark: e.mark(e.snap.era())}, nil
}

func (e *Era) mark(n uint64) Mark { return eraMoment{lineage: e.lin.ID, era: n}.mark() }

// take takes a snapshot in place of the one that is held, and judges the metadata
// by it. The first time, a lineage that cannot be gone on with gives way to a new
// one; after that it is an error.
func (e *Era) take(ctx context.Context) error {
	now, err := e.snapshot(ctx)
	if err != nil {
		return err
	}
	return e.judge(ctx, now)
}

// snapshot takes one in place of the one that is held, and returns what the device
// was just before.
func (e *Era) snapshot(ctx context.Context) (eraFacts, error) {
	e.quiet = ""
	now, err := e.kernel.now(ctx)
	if err != nil {
		return now, err
	}
	if err := now.room(); err != nil {
		return now, fmt.Errorf("track: %s: %w", e.source, err)
	}
	if e.snap != nil {
		err = e.snap.retake(ctx)
	} else {
		e.snap, err = e.kernel.take(ctx)
	}
	if err != nil {
		return now, err
	}
	if n := e.snap.era(); n > lastEra {
		return now, &LostError{Reason: fmt.Sprintf("the era counter is at %d, near its end: make new metadata", n)}
	}
	return now, nil
}

// judge compares the lineage with what is there now.
func (e *Era) judge(ctx context.Context, now eraFacts) error {
	why := e.lin.parted(now)
	if why == "" && !e.judged {
		var err error
		if why, err = e.compare(ctx, now); err != nil {
			return err
		}
	}
	if why != "" {
		if e.judged {
			return &LostError{Reason: why}
		}
		lin, err := newLineage(ctx, now, e.snap, why)
		if err != nil {
			return err
		}
		e.lin = lin
	}
	e.judged, e.dirty = true, true
	e.lin.Facts, e.lin.Newest = now.stable(), max(e.lin.Newest, e.snap.era())
	return nil
}

// compare says in words why the metadata and the source are not those of the
// lineage. Bytes that changed may have been written just now: a second snapshot
// tells.
func (e *Era) compare(ctx context.Context, now eraFacts) (string, error) {
	why, moved, err := e.lin.unlike(now, e.snap, e.kernel)
	if why != "" || err != nil || len(moved) == 0 {
		return why, err
	}
	if _, err := e.snapshot(ctx); err != nil {
		return "", err
	}
	same, why, err := e.lin.unwritten(moved, e.snap)
	if err == nil && why == "" && len(same) > 0 {
		why = fmt.Sprintf("block %d of the data has changed, and not through the era device: something wrote past it", same[0].Block)
	}
	return why, err
}

// drop lets go of the held snapshot, and of the right to take one. It writes
// files.
func (e *Era) drop() error {
	var err error
	if e.snap != nil {
		err = e.snap.Close()
	}
	e.snap, e.quiet = nil, ""
	return errors.Join(err, e.kernel.unprepare())
}

// Changes returns the bytes of the device in blocks that were written in an era
// from since on; an empty since means all bytes. The set may hold more than what
// was written before until, never less; an empty until is now, and ends an era.
func (e *Era) Changes(ctx context.Context, since, until Mark) (extent.Set, error) {
	if since == "" {
		return extent.NewSet(extent.Extent{Len: e.kernel.size()}), nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	set, err := e.changes(ctx, since, until)
	if lost := (*LostError)(nil); errors.As(err, &lost) {
		return extent.Set{}, &LostError{Mark: since, Reason: lost.Reason}
	}
	return set, err
}

func (e *Era) changes(ctx context.Context, since, until Mark) (set extent.Set, err error) {
	held := e.snap != nil && until != "" && until == e.mark(e.snap.era())
	if !held {
		if err := e.take(ctx); err != nil {
			return set, err
		}
	}
	from, err := e.moment(since)
	if err != nil {
		return set, err
	}
	if until != "" {
		to, err := e.moment(until)
		if err != nil {
			return set, err
		}
		if from > to {
			return set, fmt.Errorf("track: changes from %s to %s: in the wrong order", since, until)
		}
	}
	if set, err = e.snap.changed(ctx, from); err != nil {
		return set, err
	}
	e.written = e.written.Union(set)
	if until == "" && set.Empty() {
		e.quiet = since
	}
	return set, nil
}

// moment returns the era of one of this lineage's marks.
func (e *Era) moment(m Mark) (uint64, error) {
	at, err := m.parseEra()
	switch {
	case err != nil && m.Valid():
		return 0, &LostError{Reason: "it was made by another tracker, not by dm-era"}
	case err != nil:
		return 0, err
	case at.lineage != e.lin.ID:
		return 0, &LostError{Reason: "it is of another history of this device than that of now, which began at " + e.lin.began()}
	case at.era > e.snap.era():
		return 0, &LostError{Reason: fmt.Sprintf("it is of era %d, and the metadata is at %d: it was put back to an earlier state", at.era, e.snap.era())}
	}
	return at.era, nil
}

// Traits say that changes are named and the ends of writes are not seen.
func (e *Era) Traits() Traits { return Traits{NamesChanges: true, NeedsDrain: true} }

// Drain implements Tracker. It lets go of the snapshot: a copy may take long. The
// device is suspended for a moment, by a process of its own: the program's main must
// do what dmera.Device.Drain says. No filesystem is frozen.
func (e *Era) Drain(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.drop(); err != nil {
		return err
	}
	return e.kernel.drain(ctx)
}

// Persist lets go of the snapshot, so that the metadata does not grow, writes down
// what is known of its history, and prepares the next Cut.
func (e *Era) Persist(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := errors.Join(e.drop(), e.save()); err != nil {
		return err
	}
	return e.kernel.prepare(ctx)
}

// Keep writes down what tells this metadata from any other. The history itself is
// kept for ever. The error wraps ErrMarkLost when m is lost already.
func (e *Era) Keep(_ context.Context, _ string, m Mark, quiet bool) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if quiet {
		e.settled = m
	}
	if m == "" {
		return nil
	}
	if at, err := m.parseEra(); err != nil {
		return err
	} else if at.lineage != e.lin.ID {
		return &LostError{Mark: m, Reason: "its history has ended"}
	}
	if e.snap != nil && e.quiet == m && e.settled == m {
		if err := e.lin.renew(e.snap, e.written, e.kernel); err != nil {
			return errors.Join(err, e.drop())
		}
		e.dirty = true
	}
	return errors.Join(e.drop(), e.save())
}

// save writes the lineage down, unless another process has begun one meanwhile.
func (e *Era) save() error {
	if !e.dirty {
		return nil
	}
	if err := e.lin.save(e.o.StateDir, e.known); err != nil {
		return err
	}
	e.known, e.dirty = e.lin.ID, false
	return nil
}

// Close lets go of the device. The kernel goes on. A second call does nothing.
func (e *Era) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	e.closed = true
	return errors.Join(e.drop(), e.kernel.Close())
}
