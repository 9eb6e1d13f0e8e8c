package bpf

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/linux/bpf"
	"tidemark/track"
	"tidemark/track/history"
)

// Tracker is the tracker of a block device: the kernel notes what changes.
type Tracker struct {
	slice  extent.Extent // on the disk, bytes
	s      *session
	reader *history.Reader

	mu      sync.Mutex
	lastCut uint64          // epoch that began with our newest Cut; 0 before
	own     map[uint64]bool // epochs that began with one of our Cuts
}

// Open returns the tracker of an opened block device, which may be closed then. It
// starts tracking when that is not on, or can no longer be vouched for: then all
// earlier marks are lost. A start that fails leaves nothing behind. The errors wrap
// block.ErrNotBlockDevice, ErrNotSupported, and history.ErrUnwritable when the state
// cannot be written.
func Open(ctx context.Context, source *block.Device, opts Options) (*Tracker, error) {
	return enter(ctx, source, opts, true, (*Tracker).join)
}

// Start is Open, and remembers a mark of this moment, as Remember does.
func Start(ctx context.Context, source *block.Device, opts Options) (*Tracker, track.Mark, error) {
	var c track.Cut
	t, err := enter(ctx, source, opts, true, func(t *Tracker) (err error) {
		if err = t.join(); err != nil {
			return err
		}
		if c, err = t.cut(); err != nil {
			return err
		}
		one := history.Lease{Mark: c.Mark, Epoch: t.lastCut, Time: time.Now().UTC()}
		return t.s.history().Update(ctx, t.lastCut, func(ls *history.Leases) { ls.Remember(one) })
	})
	return t, c.Mark, err
}

// Attach returns the tracker of an opened block device that is tracked already. It
// starts nothing. The error wraps ErrNotTracked when tracking is not on, and
// track.ErrMarkLost when it is but can no longer be vouched for.
func Attach(ctx context.Context, source *block.Device, opts Options) (*Tracker, error) {
	return enter(ctx, source, opts, false, (*Tracker).join)
}

// identify returns what an opened source is now. It refuses a source of which another
// disk has the number since it was opened: there is no telling which one the caller
// reads.
func identify(source *block.Device) (block.Identity, error) {
	if !source.IsDevice() {
		return block.Identity{}, fmt.Errorf("track: %s: %w", source.Path(), block.ErrNotBlockDevice)
	}
	was := source.Identity()
	now, err := block.IdentifyDev(was.Dev())
	if err != nil {
		return now, fmt.Errorf("track: %s: %w", source.Path(), err)
	}
	if now.Disk != was.Disk || now.DiskSeq != was.DiskSeq || now.Folder != was.Folder {
		return now, fmt.Errorf("track: %s: device %s was disk %s (diskseq %d) when it was opened, and is disk %s (diskseq %d) now",
			source.Path(), was.Dev(), was.Disk, max(was.DiskSeq, was.Folder), now.Disk, max(now.DiskSeq, now.Folder))
	}
	return now, nil
}

func sliceOf(id block.Identity) extent.Extent { return extent.Extent{Off: id.Start, Len: id.Size} }

// join registers this Tracker as a holder of marks and prepares the first Cut. The
// locks history and flip must be held.
func (t *Tracker) join() error {
	cur, err := t.s.current()
	if err != nil {
		return err
	}
	defer cur.Close()
	h := t.s.history()
	if t.reader, err = h.NewReader(cur.Header().Epoch); err != nil {
		return err
	}
	if err := h.Persist(cur.Header().Epoch); err != nil {
		return err
	}
	return t.s.ensureSpare()
}

// leave undoes join, but for the spare bitmap.
func (t *Tracker) leave() error {
	if t.reader == nil {
		return nil
	}
	err := t.reader.Close()
	t.reader = nil
	return err
}

// Kind returns "bpf".
func (t *Tracker) Kind() string { return Kind }

// Granularity returns the size of a block in bytes, a power of two from 4096 on.
func (t *Tracker) Granularity() int64 { return t.s.rec.Granularity }

// Traits says that changes can be named.
func (t *Tracker) Traits() track.Traits { return track.Traits{NamesChanges: true} }

// now returns the header of the current epoch. The error is a track.LostError when
// tracking has a gap.
func (t *Tracker) now(ctx context.Context) (h bpf.Header, err error) {
	err = t.s.vouched(ctx, func(cur *bpf.Bitmap) error {
		h = cur.Header()
		return nil
	})
	return h, err
}

// Cut ends the epoch. It touches only bpffs, sysfs and memory. The error wraps
// track.ErrMarkLost when tracking cannot go on; opening the source again starts anew.
// Losses that tracking survives are not errors of Cut: Changes since an older mark
// reports them.
func (t *Tracker) Cut(ctx context.Context) (c track.Cut, err error) {
	err = t.s.vouched(ctx, func(*bpf.Bitmap) error {
		c, err = t.cut()
		return err
	})
	return c, err
}

// cut is Cut with the lock flip held, of tracking that was vouched for.
func (t *Tracker) cut() (track.Cut, error) {
	h, err := t.s.flip()
	if err != nil {
		return track.Cut{}, err
	}
	if why := bpf.Lost(h.FloorWhy) & deadly; why != 0 {
		return track.Cut{}, track.Lost("%s", lostReason(why, 0))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	doubt := t.lastCut != 0 && h.Doubted >= t.lastCut
	t.lastCut = h.Epoch
	t.own[h.Epoch] = true
	return track.Cut{Mark: t.mark(h.Epoch), Doubt: doubt}, nil
}

// part is the slice of the disk that a partition is; zero for a whole disk.
func (t *Tracker) part() extent.Extent {
	if t.s.source.IsPartition() {
		return t.slice
	}
	return extent.Extent{}
}

func (t *Tracker) mark(epoch uint64) track.Mark {
	return history.Moment{Generation: t.s.rec.Generation, Epoch: epoch, Slice: t.part()}.Mark(Kind)
}

// Changes returns the bytes of the source that changed between two marks; an empty
// since means all of them, an empty until means now, with the changes of the epoch that
// is not closed yet. It writes nothing.
//
// A write in flight has no moment of its own: it is told of the epoch in which it was
// queued and of the one in which it ended. Between two marks at which nothing was in
// flight the set is complete. A copy that follows a source in use, reading each set
// after its second mark, is complete at the first such mark: whatever a reader could
// miss ends later, and is told then.
func (t *Tracker) Changes(ctx context.Context, since, until track.Mark) (extent.Set, error) {
	if since == "" {
		return extent.NewSet(extent.Extent{Len: t.slice.Len}), nil
	}
	set, err := t.changes(ctx, since, until)
	if err != nil {
		return extent.Set{}, track.About(since, err)
	}
	return set.Clip(t.slice).Shift(-t.slice.Off), nil
}

func (t *Tracker) changes(ctx context.Context, since, until track.Mark) (extent.Set, error) {
	from, err := t.epochOf(since)
	if err != nil {
		return extent.Set{}, err
	}
	if until == "" {
		cur, err := t.s.openNow(ctx)
		if err != nil {
			return extent.Set{}, err
		}
		defer cur.Close()
		return t.changesUntil(from, cur)
	}
	to, err := t.epochOf(until)
	if err != nil {
		return extent.Set{}, err
	}
	h, err := t.now(ctx)
	if err != nil {
		return extent.Set{}, err
	}
	if from <= h.Epoch && (from > to || to > h.Epoch) {
		return extent.Set{}, fmt.Errorf("track: changes from %s to %s: in the wrong order, or yet to come", since, until)
	}
	if err := t.judge(from, h); err != nil {
		return extent.Set{}, err
	}
	return t.s.history().Changes(from, to)
}

// changesUntil returns what changed from the beginning of an epoch to the end of that
// of cur, which openNow has returned. The epoch may have ended since, and become a file.
func (t *Tracker) changesUntil(from uint64, cur *bpf.Bitmap) (extent.Set, error) {
	open, err := t.s.set(cur)
	if err != nil {
		return extent.Set{}, err
	}
	h, err := t.s.ifEnded(cur)
	if err != nil {
		return extent.Set{}, err
	}
	if err := t.judge(from, h); err != nil {
		return extent.Set{}, err
	}
	set, err := t.s.history().Changes(from, h.Epoch)
	return set.Union(open), err
}

// Vouch returns nil when Changes since m could be told now.
func (t *Tracker) Vouch(ctx context.Context, m track.Mark) error {
	if m == "" {
		return nil
	}
	var h bpf.Header
	err := t.s.vouched(ctx, func(cur *bpf.Bitmap) (err error) {
		h, err = t.s.ifEnded(cur)
		return err
	})
	if err == nil {
		_, err = t.check(m, h, false)
	}
	return track.About(m, err)
}

// check returns the epoch that begins with m, when the changes from m to the beginning of
// the epoch of h can be told. Quiet says that the caller vouches for m itself.
func (t *Tracker) check(m track.Mark, h bpf.Header, quiet bool) (from uint64, err error) {
	if from, err = t.epochOf(m); err != nil {
		return 0, err
	}
	if quiet {
		h.Doubted = 0
	}
	if err := t.judge(from, h); err != nil {
		return 0, err
	}
	return from, t.s.history().Check(from, h.Epoch)
}

// epochOf returns the epoch that begins with one of this source's marks.
func (t *Tracker) epochOf(m track.Mark) (uint64, error) {
	at, err := history.ParseMark(m, Kind)
	if err != nil {
		return 0, err
	}
	want := t.part()
	switch {
	case !t.s.rec.knows(at):
		return 0, track.Lost("it is of another tracking than that of now, which began at %s because %s",
			t.s.rec.Since.Format(time.RFC3339), t.s.rec.Before)
	case at.Slice != want:
		return 0, track.Lost("it is a mark of bytes %d+%d of the disk, not of %d+%d (0+0: all)",
			at.Slice.Off, at.Slice.Len, want.Off, want.Len)
	}
	return at.Epoch, nil
}

// judge refuses a mark that something spoilt before the moment of h.
func (t *Tracker) judge(from uint64, h bpf.Header) error {
	if from > h.Epoch {
		return track.Lost("it is of a time yet to come: was the machine set back to an earlier state?")
	}
	if from < h.Floor {
		return track.Lost("%s", lostReason(bpf.Lost(h.FloorWhy), h.FloorMisses))
	}
	t.mu.Lock()
	own := t.own[from]
	t.mu.Unlock()
	if h.Doubted < from || own {
		return nil // to our own marks, Cut told the doubt
	}
	ls, err := t.s.history().Leases()
	if err != nil && !damaged(err) {
		return err
	}
	if err == nil && ls.Quiet(from) {
		return nil
	}
	return track.Lost("the end of some writes that were in flight at the mark may have gone unseen")
}

// EachEpoch tells in which epochs the source changed, up to one of its marks: f is called with the
// number of each, in order, or of the last of several that are no longer told apart, and what
// changed in it. Where not all epochs are known any more, the first call is for the whole source, with
// the number before the first that is known. The errors are those of Changes and of f.
func (t *Tracker) EachEpoch(ctx context.Context, until track.Mark, f func(epoch uint64, set extent.Set) error) error {
	to, err := t.epochOf(until)
	if err != nil {
		return track.About(until, err)
	}
	return t.locked(ctx, func(h *history.History, now bpf.Header) error {
		if to > now.Epoch {
			return fmt.Errorf("track: changes until %s: yet to come", until)
		}
		oldest, err := h.Oldest(to)
		if err != nil {
			return err
		}
		// What spoils the marks of earlier epochs makes these unknown, too.
		oldest = min(to, max(oldest, now.Floor, now.Doubted+1))
		if oldest > 1 {
			if err := f(oldest-1, extent.NewSet(extent.Extent{Len: t.slice.Len})); err != nil {
				return err
			}
		}
		return h.Each(oldest, to, func(epoch uint64, set extent.Set) error {
			return f(min(epoch, to-1), set.Clip(t.slice).Shift(-t.slice.Off))
		})
	})
}

// MarkDirty counts bytes of the source as changed from now on, for what has changed without
// passing it.
func (t *Tracker) MarkDirty(ctx context.Context, set extent.Set) error {
	if e := set.Extents(); len(e) > 0 && e[len(e)-1].End() > t.slice.Len {
		return fmt.Errorf("track: %s: mark %d bytes at offset %d: it has %d bytes", t.s.source.Disk, e[len(e)-1].Len, e[len(e)-1].Off, t.slice.Len)
	}
	return t.s.vouched(ctx, func(cur *bpf.Bitmap) error {
		return cur.Mark(set.Shift(t.slice.Off), t.s.rec.Granularity)
	})
}

// Drain returns nil: a write that is in flight is in the changes of the epoch in which
// it ends.
func (t *Tracker) Drain(context.Context) error { return nil }

// Keep keeps the history since m for the owner. When there are more than 64 owners, the
// one that was not renewed for longest loses its mark. The error wraps
// track.ErrMarkLost when m is lost already, history.ErrUnwritable when the state cannot
// be written.
func (t *Tracker) Keep(ctx context.Context, owner string, m track.Mark, quiet bool) error {
	return t.keep(ctx, m, quiet, func(ls *history.Leases, one history.Lease) { ls.Keep(owner, one) })
}

// Owners returns who keeps marks, sorted.
func (t *Tracker) Owners(ctx context.Context) (owners []string, err error) {
	err = t.locked(ctx, func(h *history.History, _ bpf.Header) error {
		ls, err := h.Leases()
		owners = slices.Sorted(maps.Keys(ls.Owners))
		return err
	})
	return owners, err
}

// Remember keeps the history since m for no owner in particular, unless one keeps it
// already. The newest 16 such marks are kept, and m becomes the newest. The errors are
// those of Keep.
func (t *Tracker) Remember(ctx context.Context, m track.Mark) error {
	return t.keep(ctx, m, false, (*history.Leases).Remember)
}

func (t *Tracker) keep(ctx context.Context, m track.Mark, quiet bool, change func(*history.Leases, history.Lease)) error {
	return t.locked(ctx, func(h *history.History, now bpf.Header) (err error) {
		one := history.Lease{Mark: m, Time: time.Now().UTC(), Quiet: quiet}
		if m != "" {
			// Whether the epoch that is open now spoils m is found when it has ended.
			if one.Epoch, err = t.check(m, now, quiet); err != nil {
				return track.About(m, err)
			}
		}
		return h.Update(ctx, now.Epoch, func(ls *history.Leases) { change(ls, one) })
	})
}

// Persist writes the closed epochs to files, which frees their bitmaps, tidies the
// history and prepares the next Cut. Call it after a Cut, once nothing is frozen any
// more.
func (t *Tracker) Persist(ctx context.Context) error {
	err := t.locked(ctx, func(h *history.History, now bpf.Header) error { return h.Update(ctx, now.Epoch, nil) })
	if err != nil {
		return err
	}
	return t.s.withFlip(ctx, t.s.ensureSpare)
}

// locked calls f with the lock of the history held, and the header of the current epoch.
func (t *Tracker) locked(ctx context.Context, f func(h *history.History, now bpf.Header) error) error {
	h := t.s.history()
	unlock, err := history.Lock(ctx, history.LockFile(h.Dir))
	if err != nil {
		return err
	}
	defer unlock()
	now, err := t.now(ctx)
	if err != nil {
		return err
	}
	return f(h, now)
}

// closeWait bounds how long Close waits for another process's flip.
const closeWait = time.Second

// Close lets go of the disk; tracking goes on. The bitmap that was kept ready for the
// next Cut is freed, unless another process is busy with the disk: then it is left for
// that one's.
func (t *Tracker) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeWait)
	defer cancel()
	err := t.s.withFlip(ctx, t.s.dropSpare)
	if errors.Is(err, track.ErrMarkLost) || errors.Is(err, context.DeadlineExceeded) {
		err = nil // tracking was stopped meanwhile, or goes on elsewhere
	}
	return errors.Join(err, t.leave(), t.s.close())
}
