package track

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/linux/bpf"
)

// Live is the tracker of a block device: the kernel notes what changes. A
// partition is a slice of its disk, and what is tracked is the disk.
type Live struct {
	source string
	slice  extent.Extent // on the disk, bytes
	part   bool
	s      *session
	reader *fileLock

	mu      sync.Mutex
	lastCut uint64          // epoch that began with our newest Cut; 0 before
	own     map[uint64]bool // epochs that began with one of our Cuts
	settled map[Mark]bool
}

// OpenLive returns the tracker of the block device at source and starts
// tracking when it is not on, or when it is on but can no longer be vouched
// for: then all earlier marks are lost. The errors wrap block.ErrNotBlockDevice
// and bpf.ErrNotSupported.
func OpenLive(ctx context.Context, source string, opts Options) (*Live, error) {
	id, err := block.Identify(source)
	if err != nil {
		return nil, err
	}
	s, err := start(ctx, id, opts)
	if err != nil {
		return nil, err
	}
	l := &Live{
		source: source, s: s, part: id.IsPartition(), slice: extent.Extent{Off: id.Start, Len: id.Size},
		own: map[uint64]bool{}, settled: map[Mark]bool{},
	}
	if err := l.enter(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// enter registers this Live as a holder of marks and prepares the first Cut.
func (l *Live) enter(ctx context.Context) error {
	history, err := lockPath(ctx, filepath.Join(l.s.dir, historyLock))
	if err != nil {
		return err
	}
	defer history.unlock()
	now, err := l.now(ctx)
	if err != nil {
		return err
	}
	if l.reader, err = newReader(l.s.dir, now.Epoch); err != nil {
		return err
	}
	if err := l.s.persist(now.Epoch); err != nil {
		return err
	}
	return l.withFlip(ctx, l.s.ensureSpare)
}

// Kind returns "bpf".
func (l *Live) Kind() string { return KindLive }

// Granularity returns the size of a block in bytes.
func (l *Live) Granularity() int64 { return l.s.rec.Granularity }

// withFlip calls f with the disk's flip lock held.
func (l *Live) withFlip(ctx context.Context, f func() error) error {
	lock, err := lockPath(ctx, filepath.Join(l.s.dir, flipLock))
	if err != nil {
		return err
	}
	defer lock.unlock()
	return f()
}

// vouch checks that tracking went on without a gap and returns the header of
// the current epoch. The flip lock must be held. The error is a LostError when
// not.
func (l *Live) vouch() (bpf.Header, error) {
	cur, err := l.s.current()
	if err != nil {
		return bpf.Header{}, err
	}
	defer cur.Close()
	id, err := block.Identify(l.source)
	if err != nil {
		return bpf.Header{}, err
	}
	why, err := l.s.rec.differs(id)
	if why == "" && err == nil {
		why, err = l.s.dead(cur)
	}
	if err != nil {
		return bpf.Header{}, err
	}
	if slice := (extent.Extent{Off: id.Start, Len: id.Size}); why == "" && slice != l.slice {
		why = fmt.Sprintf("the partition was moved or resized from %d+%d to %d+%d bytes",
			l.slice.Off, l.slice.Len, slice.Off, slice.Len)
	}
	if why != "" {
		return bpf.Header{}, &LostError{Reason: why}
	}
	return cur.Header(), nil
}

// now returns the header of the current epoch.
func (l *Live) now(ctx context.Context) (h bpf.Header, err error) {
	err = l.withFlip(ctx, func() error {
		h, err = l.vouch()
		return err
	})
	return h, err
}

// Cut ends the epoch. It touches only bpffs, sysfs and memory. The error wraps
// ErrMarkLost when tracking cannot go on; opening the source again starts anew.
// Losses that tracking survives are not errors of Cut: Changes since an older
// mark reports them.
func (l *Live) Cut(ctx context.Context) (Cut, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var h bpf.Header
	err := l.withFlip(ctx, func() error {
		if _, err := l.vouch(); err != nil {
			return err
		}
		var err error
		if h, err = l.s.flip(); err != nil {
			return err
		}
		if why := bpf.Lost(h.FloorWhy) & deadly; why != 0 {
			return &LostError{Reason: lostReason(why, 0)}
		}
		return nil
	})
	if err != nil {
		return Cut{}, err
	}
	doubt := l.lastCut != 0 && h.Doubted >= l.lastCut
	l.lastCut = h.Epoch
	l.own[h.Epoch] = true
	return Cut{Mark: l.mark(h.Epoch), Doubt: doubt}, nil
}

func (l *Live) mark(epoch uint64) Mark {
	m := moment{generation: l.s.rec.Generation, epoch: epoch}
	if l.part {
		m.slice = l.slice
	}
	return m.mark()
}

// Changes returns the bytes of the source that changed between two marks; an
// empty since means all of them, an empty until means now, with the changes of
// the epoch that is not closed yet. It writes nothing.
//
// A write in flight has no moment of its own: it is told of the epoch in which
// it was queued and of the one in which it ended. Between two marks at which
// nothing was in flight the set is complete. A copy that follows a source in
// use, reading each set after its second mark, is complete at the first such
// mark: whatever a reader could miss ends later, and is told then.
func (l *Live) Changes(ctx context.Context, since, until Mark) (extent.Set, error) {
	if since == "" {
		return extent.NewSet(extent.Extent{Len: l.slice.Len}), nil
	}
	set, err := l.changes(ctx, since, until)
	if lost := (*LostError)(nil); errors.As(err, &lost) {
		return extent.Set{}, &LostError{Mark: since, Reason: lost.Reason}
	}
	return set, err
}

func (l *Live) changes(ctx context.Context, since, until Mark) (extent.Set, error) {
	from, err := l.moment(since)
	if err != nil {
		return extent.Set{}, err
	}
	h, err := l.now(ctx)
	if err != nil {
		return extent.Set{}, err
	}
	to := h.Epoch
	if until != "" {
		m, err := l.moment(until)
		if err != nil {
			return extent.Set{}, err
		}
		to = m.epoch
	}
	if from.epoch > h.Epoch {
		return extent.Set{}, &LostError{Reason: "it is of a time yet to come: was the machine set back to an earlier state?"}
	}
	if from.epoch > to || to > h.Epoch {
		return extent.Set{}, fmt.Errorf("track: changes from %s to %s: in the wrong order, or yet to come", since, until)
	}
	open := extent.Set{}
	if until == "" {
		if open, h, err = l.openEpoch(ctx, h.Epoch, h); err != nil {
			return extent.Set{}, err
		}
	}
	if err := l.judge(from.epoch, h); err != nil {
		return extent.Set{}, err
	}
	set, err := l.s.gather(from.epoch, to)
	if err != nil {
		return extent.Set{}, l.whyDropped(from.epoch, err)
	}
	return set.Union(open).Clip(l.slice).Shift(-l.slice.Off), nil
}

// moment parses a mark and checks that it is one of this source's.
func (l *Live) moment(m Mark) (moment, error) {
	if m == scanMark {
		return moment{}, &LostError{Reason: "it was made without tracking"}
	}
	if m.Kind() == KindEra && m.Valid() {
		return moment{}, &LostError{Reason: "it was made by dm-era, not by the tracking of now"}
	}
	out, err := m.parse()
	if err != nil {
		return moment{}, err
	}
	want := extent.Extent{}
	if l.part {
		want = l.slice
	}
	switch {
	case out.generation != l.s.rec.Generation:
		return moment{}, &LostError{Reason: fmt.Sprintf("it is of another tracking than that of now, which began at %s because %s",
			l.s.rec.Since.Format(time.RFC3339), l.s.rec.Before)}
	case out.slice != want:
		return moment{}, &LostError{Reason: fmt.Sprintf("it is a mark of bytes %d+%d of the disk, not of %d+%d (0+0: all)",
			out.slice.Off, out.slice.Len, want.Off, want.Len)}
	}
	return out, nil
}

// openEpoch returns what the epoch that is still open holds, and its header as
// it would be had the epoch been ended now.
func (l *Live) openEpoch(ctx context.Context, epoch uint64, h bpf.Header) (extent.Set, bpf.Header, error) {
	b, err := l.s.open(epoch)
	if err != nil {
		return extent.Set{}, h, err
	}
	defer b.Close()
	if err := l.withFlip(ctx, func() error { return l.s.settle(b) }); err != nil {
		return extent.Set{}, h, err
	}
	set, err := b.Set(l.s.rec.Granularity, l.s.rec.Size)
	if err != nil {
		return extent.Set{}, h, err
	}
	misses, err := l.s.fac.Misses()
	if err != nil {
		return extent.Set{}, h, err
	}
	verdict := judgeEpoch(b, misses)
	return set, verdict.apply(h, epoch+1), nil
}

// judge refuses a mark that something spoilt.
func (l *Live) judge(from uint64, h bpf.Header) error {
	if from < h.Floor {
		return &LostError{Reason: lostReason(bpf.Lost(h.FloorWhy), h.FloorMisses)}
	}
	l.mu.Lock()
	own := l.own[from] || l.settled[l.mark(from)]
	l.mu.Unlock()
	if h.Doubted < from || own {
		return nil // to our own marks, Cut told the doubt
	}
	ls, err := loadLeases(l.s.dir)
	if err != nil && !errors.Is(err, errDamagedState) {
		return err
	}
	if err == nil && ls.settled(from) {
		return nil
	}
	return &LostError{Reason: "the end of some writes that were in flight at the mark may have gone unseen"}
}

// whyDropped replaces the general reason of a dropped history by the one noted
// when it was dropped.
func (l *Live) whyDropped(epoch uint64, err error) error {
	if lost := (*LostError)(nil); !errors.As(err, &lost) {
		return err
	}
	if ls, lerr := loadLeases(l.s.dir); lerr == nil && ls.Dropped[epoch] != "" {
		return &LostError{Reason: "its history was dropped: " + ls.Dropped[epoch]}
	}
	return err
}

// closeWait bounds how long Close waits for another process's flip.
const closeWait = time.Second

// Close lets go of the disk; tracking goes on. The bitmap kept ready for the
// next Cut is freed.
func (l *Live) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeWait)
	defer cancel()
	err := l.withFlip(ctx, l.s.dropSpare)
	if errors.Is(err, ErrMarkLost) {
		err = nil // tracking was stopped meanwhile
	}
	if l.reader != nil {
		err = errors.Join(err, os.Remove(l.reader.f.Name()))
		l.reader.unlock()
		l.reader = nil
	}
	return errors.Join(err, l.s.close())
}
