package track

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"tidemark/linux/bpf"
	"tidemark/linux/dm"
)

// session is one generation of tracking of one disk. Its methods are called
// with the disk's flip lock held, unless they say otherwise.
type session struct {
	pl  place
	dir string // the disk's folder in RunDir
	rec record
	fac *bpf.Facility
	ctl *dm.Control // nil until a table is looked at
}

// deadly are the losses after which the bitmaps no longer fit the disk, so that
// tracking has to start anew. After the others it goes on, and only the marks
// before are lost.
const deadly = bpf.LostReplugged | bpf.LostResized | bpf.LostRange

// epochs returns the numbers of the pinned bitmaps in ascending order. It needs
// no lock.
func (s *session) epochs() ([]uint64, error) {
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
	if err := s.finishAll(cur); err != nil {
		return nil, errors.Join(err, cur.Close())
	}
	return cur, nil
}

// active finds the active bitmap by the flags in the headers, and where these
// are of two minds because a flip was interrupted, by asking the kernel.
func (s *session) active() (*bpf.Bitmap, error) {
	epochs, err := s.epochs()
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
	return nil, &LostError{Reason: "its bitmap in the kernel is gone (tracking was stopped, or bpffs was emptied)"}
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
	return nil, &LostError{Reason: "its bitmap in the kernel is gone (tracking was stopped, or bpffs was emptied)"}
}

// finishAll deals with the end of every epoch before cur where that was not
// done.
func (s *session) finishAll(cur *bpf.Bitmap) error {
	epochs, err := s.epochs()
	if err != nil {
		return err
	}
	n := cur.Header().Epoch
	for _, e := range epochs {
		if e >= n {
			break
		}
		old, err := s.open(e)
		if errors.Is(err, fs.ErrNotExist) {
			continue // became a file, so it was finished
		}
		if err != nil {
			return err
		}
		if !old.Header().Closed {
			err = s.finish(old, cur)
		}
		if err := errors.Join(err, old.Close()); err != nil {
			return err
		}
	}
	return nil
}

// finish judges the epoch that ended with old and leaves the verdict in cur's
// header. Repeating it after an interruption is harmless: the counters of the
// kernel have grown at most, so it can only judge more strictly.
func (s *session) finish(old, cur *bpf.Bitmap) error {
	misses, err := s.fac.Misses()
	if err != nil {
		return err
	}
	h := cur.Header()
	cur.SetHeader(judgeEpoch(old, misses).apply(h, h.Epoch))
	was := old.Header()
	was.Closed = true
	old.SetHeader(was)
	return nil
}

// flipping is the end of one epoch and the beginning of the next.
type flipping struct {
	s         *session
	cur, next *bpf.Bitmap
}

// flip ends the current epoch and returns the header of the next one.
func (s *session) flip() (bpf.Header, error) {
	f := &flipping{s: s}
	defer f.close()
	for _, step := range f.steps() {
		if err := step(); err != nil {
			return bpf.Header{}, err
		}
	}
	return f.next.Header(), nil
}

// steps are what a flip consists of, and what is left when the process dies
// after each.
func (f *flipping) steps() []func() error {
	return []func() error{
		f.find,     // nothing
		f.prepare,  // an unused bitmap, which the next flip takes
		f.stage,    // the same
		f.retire,   // resolve finds the old bitmap in the slot and takes it back
		f.swap,     // resolve finds the new one in the slot
		f.activate, // finishAll judges the old epoch
		f.finish,   // all is done
	}
}

func (f *flipping) find() (err error) {
	f.cur, err = f.s.current()
	return err
}

func (f *flipping) prepare() (err error) {
	f.next, err = f.s.spare(f.cur.Header().Epoch + 1)
	return err
}

// stage writes the header of the next epoch. The counters are read before the
// swap: a skip between this and the judgement of the old epoch counts in both.
func (f *flipping) stage() error {
	misses, err := f.s.fac.Misses()
	if err != nil {
		return err
	}
	h := f.cur.Header()
	f.next.SetHeader(bpf.Header{
		Epoch:        h.Epoch + 1,
		BaseQueue:    misses.Queue,
		BaseComplete: misses.Complete,
		Floor:        h.Floor,
		FloorWhy:     h.FloorWhy,
		FloorMisses:  h.FloorMisses,
		Doubted:      h.Doubted,
		Opened:       time.Now().UnixNano(),
		Counted:      h.Counted,
	})
	return nil
}

func (f *flipping) retire() error {
	h := f.cur.Header()
	h.Retired = true
	f.cur.SetHeader(h)
	return nil
}

func (f *flipping) swap() error { return f.s.fac.Swap(f.s.rec.Slot, f.next) }

func (f *flipping) activate() error {
	h := f.next.Header()
	h.Active = true
	f.next.SetHeader(h)
	return nil
}

func (f *flipping) finish() error { return f.s.finish(f.cur, f.next) }

func (f *flipping) close() {
	for _, b := range []*bpf.Bitmap{f.cur, f.next} {
		if b != nil {
			b.Close()
		}
	}
}

// spare opens the bitmap prepared for an epoch, or makes it. A bitmap that was
// never active has no marks, whoever made it.
func (s *session) spare(epoch uint64) (*bpf.Bitmap, error) {
	b, err := s.open(epoch)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return b, err
	}
	b, err = bpf.NewBitmap(s.rec.blocks())
	if err != nil {
		return nil, err
	}
	if err := b.Pin(s.pl.pin(s.rec.Generation, epoch)); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// settle waits until what was marked in the active bitmap before can be read: a
// program may leave the summary bit of a page to another that has not come to it.
// Putting the bitmap in the slot where it is already costs but the wait.
func (s *session) settle(b *bpf.Bitmap) error {
	cur, err := s.current()
	if err != nil {
		return err
	}
	defer cur.Close()
	if cur.ID() != b.ID() {
		return nil // the flip that ended the epoch has waited
	}
	return s.fac.Swap(s.rec.Slot, cur)
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
	return bpf.Unpin(s.pl.pin(s.rec.Generation, cur.Header().Epoch+1))
}

// dead says in words why the disk's marks are all lost and tracking must start
// anew; empty when it is in order.
func (s *session) dead(cur *bpf.Bitmap) (string, error) {
	if err := s.fac.Check(s.rec.BioBased); errors.Is(err, bpf.ErrBroken) {
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
