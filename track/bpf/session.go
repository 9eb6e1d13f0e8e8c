package bpf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/linux/bpf"
	"tidemark/linux/dm"
	"tidemark/track"
	"tidemark/track/history"
)

// session is one generation of tracking of one disk. Its methods are called with the
// disk's lock flip held, unless they say otherwise.
type session struct {
	pl     paths
	source block.Identity // what it was opened for: the disk, or a partition
	rec    record
	fac    *bpf.Facility
	ctl    *dm.Control // nil until a table is looked at
	theirs bool        // the tables that were looked at last have a snapshot that is not ours
}

// history returns the closed epochs. It needs no lock.
func (s *session) history() *history.History {
	return &history.History{
		Dir: s.dir(), Generation: s.rec.Generation, Size: s.rec.Size, Granularity: s.rec.Granularity, Pinned: s,
	}
}

// dir is the disk's folder in RunDir.
func (s *session) dir() string { return s.pl.disk(s.source.Disk) }

// withFlip calls f with the lock flip held.
func (s *session) withFlip(ctx context.Context, f func() error) error {
	unlock, err := history.Lock(ctx, filepath.Join(s.dir(), flipLock))
	if err != nil {
		return err
	}
	defer unlock()
	return f()
}

// vouch checks that tracking went on without a gap and returns the active bitmap. The
// error is a track.LostError when not.
func (s *session) vouch() (*bpf.Bitmap, error) {
	cur, err := s.current()
	if err != nil {
		return nil, err
	}
	why, err := s.gap(cur)
	if why != "" {
		err = track.Lost("%s", why)
	}
	if err != nil {
		return nil, errors.Join(err, cur.Close())
	}
	return cur, nil
}

// vouched calls f with the lock flip held and what vouch returns.
func (s *session) vouched(ctx context.Context, f func(cur *bpf.Bitmap) error) error {
	return s.withFlip(ctx, func() error {
		cur, err := s.vouch()
		if err != nil {
			return err
		}
		defer cur.Close()
		return f(cur)
	})
}

// gap says in words why tracking did not go on without one; "" when it did. The device
// is asked for by its number, whatever its path leads to by now.
func (s *session) gap(cur *bpf.Bitmap) (string, error) {
	id, err := block.IdentifyDev(s.source.Dev())
	if err != nil {
		return "", fmt.Errorf("track: %w", err)
	}
	why, err := s.rec.differs(id)
	if why == "" && err == nil {
		why, err = s.dead(cur)
	}
	was, is := sliceOf(s.source), sliceOf(id)
	if why == "" && err == nil && is != was {
		why = fmt.Sprintf("the partition was moved or resized from %d+%d to %d+%d bytes", was.Off, was.Len, is.Off, is.Len)
	}
	return why, err
}

// openNow returns the active bitmap when all that was marked in it before can be read:
// a program may leave the summary bit of a page to another that has not come to it.
// Putting the bitmap in the slot where it is already costs but the wait. It takes the
// lock itself. The bitmap can be read also when its epoch has ended and is a file.
func (s *session) openNow(ctx context.Context) (cur *bpf.Bitmap, err error) {
	err = s.withFlip(ctx, func() error {
		if cur, err = s.vouch(); err != nil {
			return err
		}
		if err := s.fac.Swap(s.rec.Slot, cur); err != nil {
			return errors.Join(err, cur.Close())
		}
		return nil
	})
	return cur, err
}

// set returns what a bitmap holds. It needs no lock.
func (s *session) set(b *bpf.Bitmap) (extent.Set, error) {
	return b.Set(s.rec.Granularity, s.rec.Size)
}

// ifEnded returns the header of a bitmap as it would be had its epoch ended now. It
// needs no lock.
func (s *session) ifEnded(b *bpf.Bitmap) (bpf.Header, error) {
	misses, err := s.fac.Misses(s.rec.BioBased)
	if err != nil {
		return bpf.Header{}, err
	}
	h := b.Header()
	return judged(b, misses, h, h.Epoch+1), nil
}

// deadly are the losses after which the bitmaps no longer fit the disk, so that
// tracking has to start anew. After the others it goes on, and only the marks
// before are lost.
const deadly = bpf.LostReplugged | bpf.LostResized | bpf.LostRange

// Epochs returns the numbers of the pinned bitmaps, ascending. It needs no lock, as
// Load and Drop: with these, a session is a history.Pinned.
func (s *session) Epochs() ([]uint64, error) {
	entries, err := os.ReadDir(s.pl.pins)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("track: list bitmaps: %w", err)
	}
	var all []uint64
	for _, e := range entries {
		if gen, epoch, ok := parsePin(e.Name()); ok && gen == s.rec.Generation {
			all = append(all, epoch)
		}
	}
	slices.Sort(all)
	return all, nil
}

// Load returns what an epoch's bitmap holds.
func (s *session) Load(epoch uint64) (extent.Set, error) {
	b, err := s.open(epoch)
	if err != nil {
		return extent.Set{}, err
	}
	defer b.Close()
	return s.set(b)
}

// Drop frees an epoch's bitmap.
func (s *session) Drop(epoch uint64) error { return bpf.Unpin(s.pl.pin(s.rec.Generation, epoch)) }

func (s *session) open(epoch uint64) (*bpf.Bitmap, error) {
	return bpf.OpenBitmap(s.pl.pin(s.rec.Generation, epoch))
}

// current returns the active bitmap, after having completed what a flip that
// was interrupted left undone. The error is a LostError when there is none.
func (s *session) current() (*bpf.Bitmap, error) {
	cur, err := s.active()
	if err != nil {
		return nil, err
	}
	if err := s.judgeAll(cur); err != nil {
		return nil, errors.Join(err, cur.Close())
	}
	return cur, nil
}

// active finds the active bitmap by the flags in the headers, and where these
// are of two minds because a flip was interrupted, by asking the kernel.
func (s *session) active() (*bpf.Bitmap, error) {
	epochs, err := s.Epochs()
	if err != nil {
		return nil, err
	}
	for _, e := range slices.Backward(epochs) {
		b, err := s.open(e)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		h := b.Header()
		if h.Active && !h.Retired {
			return b, nil
		}
		b.Close()
		if h.Active {
			return s.resolve(epochs)
		}
	}
	return nil, track.Lost("its bitmap in the kernel is gone (tracking was stopped, or bpffs was emptied)")
}

// resolve decides which bitmap is active when a flip stopped half-way, and
// corrects the flags: a bitmap not yet taken out is not retired, one already
// put in is active.
func (s *session) resolve(epochs []uint64) (*bpf.Bitmap, error) {
	id, found, err := s.fac.Active(s.rec.Slot)
	if err != nil {
		return nil, err
	}
	for _, e := range slices.Backward(epochs) {
		b, err := s.open(e)
		if errors.Is(err, fs.ErrNotExist) {
			continue // became a file
		}
		if err != nil {
			return nil, err
		}
		if found && b.ID() == id {
			h := b.Header()
			h.Active, h.Retired = true, false
			b.SetHeader(h)
			return b, nil
		}
		b.Close()
	}
	return nil, track.Lost("its bitmap in the kernel is gone (tracking was stopped, or bpffs was emptied)")
}

// ensureSpare makes the bitmap of the next flip ahead of time.
func (s *session) ensureSpare() error {
	cur, err := s.current()
	if err != nil {
		return err
	}
	defer cur.Close()
	b, err := s.spare(cur.Header().Epoch + 1)
	if err != nil {
		return err
	}
	return b.Close()
}

// dropSpare frees what ensureSpare made.
func (s *session) dropSpare() error {
	cur, err := s.current()
	if err != nil {
		return err
	}
	defer cur.Close()
	return s.Drop(cur.Header().Epoch + 1)
}

// dead says in words why the disk's marks are all lost and tracking must start
// anew; empty when it is in order.
func (s *session) dead(cur *bpf.Bitmap) (string, error) {
	if err := s.fac.Check(s.rec.BioBased, s.rec.Swaps); errors.Is(err, bpf.ErrBroken) {
		return detached, nil
	} else if err != nil {
		return "", err
	}
	d, known, err := s.fac.Get(s.rec.dev())
	if err != nil {
		return "", err
	}
	if !known || d.Slot != s.rec.Slot || d.DiskSeq != s.rec.DiskSeq {
		return "the kernel no longer tracks the disk (tracking was stopped)", nil
	}
	h := cur.Header()
	if why := (cur.Lost() | bpf.Lost(h.FloorWhy)) & deadly; why != 0 {
		return lostReason(why, 0), nil
	}
	if why := s.remapped(); why != "" {
		return why, nil
	}
	return s.reset(cur)
}

// lostReason says in words what a floor or a header says in flags.
func lostReason(why bpf.Lost, misses uint64) string {
	switch {
	case why&bpf.LostMerged != 0:
		return "a snapshot was merged into the device"
	case why&bpf.LostReplugged != 0:
		return "the device was re-plugged: another disk has its number"
	case why&bpf.LostResized != 0:
		return "the disk was resized"
	case why&bpf.LostRange != 0:
		return "there was I/O beyond the end of the tracked disk"
	case why&bpf.LostPassthrough != 0:
		return "a passthrough command was sent to the disk, and what it changed is unknown"
	}
	return fmt.Sprintf("the kernel skipped %d events", misses)
}

// close lets go of what the session has open.
func (s *session) close() error {
	err := s.fac.Close()
	if s.ctl != nil {
		err = errors.Join(err, s.ctl.Close())
		s.ctl = nil
	}
	return err
}
