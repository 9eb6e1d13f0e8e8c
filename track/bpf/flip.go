package bpf

import (
	"errors"
	"io/fs"
	"time"

	"tidemark/linux/bpf"
)

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
		f.activate, // judgeAll judges the old epoch
		f.judge,    // all is done
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
	misses, err := f.s.fac.Misses(f.s.rec.BioBased)
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

func (f *flipping) judge() error { return f.s.judge(f.cur, f.next) }

func (f *flipping) close() {
	for _, b := range []*bpf.Bitmap{f.cur, f.next} {
		if b != nil {
			b.Close()
		}
	}
}

// judgeAll judges every epoch before cur where that was not done.
func (s *session) judgeAll(cur *bpf.Bitmap) error {
	epochs, err := s.Epochs()
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
			continue // became a file, so it was judged
		}
		if err != nil {
			return err
		}
		if !old.Header().Closed {
			err = s.judge(old, cur)
		}
		if err := errors.Join(err, old.Close()); err != nil {
			return err
		}
	}
	return nil
}

// judge decides how far the epoch of old, which has ended, can be trusted, and leaves the
// verdict in cur's header. Repeating it after an interruption is harmless: the counters
// of the kernel have grown at most, so it can only judge more strictly.
func (s *session) judge(old, cur *bpf.Bitmap) error {
	misses, err := s.fac.Misses(s.rec.BioBased)
	if err != nil {
		return err
	}
	h := cur.Header()
	cur.SetHeader(judged(old, misses, h, h.Epoch))
	was := old.Header()
	was.Closed = true
	old.SetHeader(was)
	return nil
}

// spare opens the bitmap prepared for an epoch, or makes it. A bitmap that was
// never active has no marks, whoever made it.
func (s *session) spare(epoch uint64) (*bpf.Bitmap, error) {
	b, err := s.open(epoch)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return b, err
	}
	b, err = s.fac.NewBitmap(s.rec.blocks())
	if err != nil {
		return nil, err
	}
	if err := b.Pin(s.pl.pin(s.rec.Generation, epoch)); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// judged returns the header h, with what spoilt the epoch of b by the counters of now:
// marks of epochs before next are lost when a change went unmarked, and completions that
// went unseen are a doubt.
func judged(b *bpf.Bitmap, now bpf.Misses, h bpf.Header, next uint64) bpf.Header {
	was := b.Header()
	lost, misses := b.Lost()&^bpf.LostAll, int64(now.Queue-was.BaseQueue) // below 0 where it fell to 0
	if lost != 0 || misses != 0 {
		h.Floor, h.FloorWhy, h.FloorMisses = next, uint64(lost), uint64(max(misses, -misses))
	}
	if now.Complete != was.BaseComplete || b.Doubts() != 0 {
		h.Doubted = was.Epoch
	}
	return h
}
