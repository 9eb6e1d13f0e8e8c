package restore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/format/sums"
	"tidemark/transfer/transaction"
)

const (
	// pieceBytes is how much is read at once, in bytes, unless a block is larger.
	pieceBytes = 1 << 20
	// leastWorkers have the copy read while the target is written to.
	leastWorkers = 4
)

// tally counts what was done.
type tally struct {
	mu        sync.Mutex
	read      int64 // of the copy, bytes
	written   int64 // bytes that the target got, zeros included
	journaled int64 // bytes of the journal
	bad       []extent.Extent
	lost      int64 // bytes of the copy that could not be read
	lostTo    error // the first error of reading it
}

// Read returns how many bytes of the copy were read, holes left out.
func (t *tally) Read() int64 { return t.get(&t.read) }

// Written returns how many bytes the target got.
func (t *tally) Written() int64 { return t.get(&t.written) }

// Journaled returns how many bytes were written beside the target.
func (t *tally) Journaled() int64 { return t.get(&t.journaled) }

func (t *tally) get(n *int64) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return *n
}

// Bad returns the blocks of the copy that were not what they should be.
func (t *tally) Bad() extent.Set {
	t.mu.Lock()
	defer t.mu.Unlock()
	return extent.NewSet(t.bad...)
}

// damage is the error of a copy with such blocks, nil where they are to be restored. rest
// says what became of the others.
func (s *store) damage(rest string) error {
	bad := s.Bad()
	if bad.Empty() || s.copy.Unchecked {
		return nil
	}
	err := fmt.Errorf("%w: %d bytes of it, %s; %s", ErrDamaged, bad.Bytes(), ranges(bad), rest)
	if s.lost > 0 {
		err = fmt.Errorf("%w; %d bytes cannot be read: %w", err, s.lost, s.lostTo)
	}
	return err
}

// mostRanges is how many ranges are named.
const mostRanges = 8

// ranges names the ranges of a set, the first ones of many.
func ranges(set extent.Set) string {
	text := "bytes"
	for i, e := range set.Extents() {
		if i == mostRanges {
			return fmt.Sprintf("%s and %d more places", text, set.Len()-i)
		}
		if i > 0 {
			text += ","
		}
		text += fmt.Sprintf(" %d-%d", e.Off, e.End()-1)
	}
	return text
}

// Compare returns the blocks of set in which the target does not hold what the checksums
// of the copy say. It reads the target alone, from its disk.
func (s *store) Compare(ctx context.Context, set extent.Set) (differs extent.Set, err error) {
	defer explain(&err)
	transaction.Reread(s.target)
	var mu sync.Mutex
	var all []extent.Extent
	err = s.eachHeld(ctx, s.align(set), s.target, func(e extent.Extent, buf []byte) error {
		if err := block.ReadPadded(s.target, buf, e.Off); err != nil {
			return fmt.Errorf("target: %d bytes at offset %d: %w", e.Len, e.Off, err)
		}
		wrong, err := s.wrong(e, buf)
		if err == nil {
			s.holds(e, buf, wrong)
		}
		mu.Lock()
		defer mu.Unlock()
		all = append(all, wrong...)
		return err
	})
	return extent.NewSet(all...), err
}

// wrong returns the blocks of e that are not what the checksums say when buf is their
// content, nil for zeros.
func (s *store) wrong(e extent.Extent, buf []byte) (all []extent.Extent, err error) {
	if s.copy.Sums == nil {
		return nil, nil
	}
	return s.copy.Sums.Wrong(e, buf)
}

// holds tells of a piece of the target, but for some blocks.
func (s *store) holds(e extent.Extent, buf []byte, but []extent.Extent) {
	if s.Holds == nil || buf == nil {
		return
	}
	for _, part := range extent.NewSet(e).Subtract(extent.NewSet(but...)).Extents() {
		if data := buf[part.Off-e.Off:][:part.Len]; !block.IsZero(data) {
			s.Holds(part, data)
		}
	}
}

// window is how much is looked through for holes at once, in bytes.
const window = 4 << 30

// eachHeld is each for the pieces of set that hold anything but holes, in x or by their
// checksums.
func (s *store) eachHeld(ctx context.Context, set extent.Set, x any, f func(e extent.Extent, buf []byte) error) error {
	var todo extent.Builder // small runs go together, so that several are worked on at a time
	looked := int64(0)
	for _, run := range set.Extents() {
		for ; !run.Empty(); run.Off, run.Len = run.Off+window, run.Len-window {
			w := extent.Extent{Off: run.Off, Len: min(window, run.Len)}
			held, err := s.held(x, w)
			if err != nil {
				return err
			}
			if s.Progress != nil {
				s.Progress(w.Len - held.Bytes())
			}
			for _, e := range held.Extents() {
				todo.Add(e)
			}
			if looked += w.Len; looked >= window {
				if err := s.each(ctx, todo.Set(), f); err != nil {
					return err
				}
				looked = 0
			}
		}
	}
	return s.each(ctx, todo.Set(), f)
}

// held returns the blocks of w that hold anything but holes, in x or by their checksums.
func (s *store) held(x any, w extent.Extent) (extent.Set, error) {
	held, err := sums.DataOf(x, w)
	if err == nil && s.copy.Sums != nil {
		var should extent.Set
		should, err = s.copy.Sums.Data(w)
		held = held.Union(should)
	}
	return held.Align(s.copy.State.BlockSize, w.End()).Clip(w), err
}

// each calls f for the pieces of set, several at a time, with a buffer for each.
func (s *store) each(ctx context.Context, set extent.Set, f func(e extent.Extent, buf []byte) error) error {
	size := max(pieceBytes, s.copy.State.BlockSize)
	bufs := sync.Pool{New: func() any { b := block.AlignedBuffer(int(size)); return &b }}
	group, running := errgroup.WithContext(ctx)
	group.SetLimit(max(leastWorkers, runtime.GOMAXPROCS(0)))
	var told sync.Mutex
	for _, run := range set.Extents() {
		for ; !run.Empty() && running.Err() == nil; run.Off, run.Len = run.Off+size, run.Len-size {
			e := extent.Extent{Off: run.Off, Len: min(size, run.Len)}
			group.Go(func() error {
				buf := bufs.Get().(*[]byte)
				defer bufs.Put(buf)
				if err := f(e, (*buf)[:e.Len]); err != nil {
					return err
				}
				told.Lock()
				defer told.Unlock()
				if s.Progress != nil {
					s.Progress(e.Len)
				}
				return nil
			})
		}
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// bring returns what reads a piece of the copy, checks it, and hands it to a writer.
func (s *store) bring(ctx context.Context, to transaction.Writer) func(e extent.Extent, buf []byte) error {
	return func(e extent.Extent, buf []byte) error {
		if err := s.wait(ctx, len(buf)); err != nil {
			return err
		}
		data, err := s.copy.Image.Data(e)
		if err != nil {
			return err
		}
		if data.Empty() {
			buf = nil // zeros
		}
		bad, err := s.fetch(e, buf, data)
		if err != nil {
			return err
		}
		good := extent.NewSet(e)
		if !s.copy.Unchecked {
			good = good.Subtract(extent.NewSet(bad...))
		}
		for _, part := range good.Extents() {
			if buf == nil {
				err = s.write(to, part, nil)
			} else {
				err = s.put(to, part, buf[part.Off-e.Off:][:part.Len])
			}
			if err != nil {
				return fmt.Errorf("target: at offset %d: %w", part.Off, err)
			}
		}
		return nil
	}
}

// wait waits until n more bytes may be read.
func (s *store) wait(ctx context.Context, n int) error {
	for s.Limit != nil && n > 0 {
		part := min(n, s.Limit.Burst())
		if err := s.Limit.WaitN(ctx, part); err != nil {
			return errors.Join(context.Cause(ctx), err)
		}
		n -= part
	}
	return nil
}

// fetch reads a piece of the copy into buf and returns its blocks that are not what they
// should be. What is no data is a hole of the image, and not read; without any, buf is nil.
func (s *store) fetch(e extent.Extent, buf []byte, data extent.Set) (bad []extent.Extent, err error) {
	var lost []extent.Extent
	end := e.Off
	for _, d := range data.Extents() {
		clear(buf[end-e.Off : d.Off-e.Off])
		end = d.End()
		if lost, err = s.readAt(d, buf[d.Off-e.Off:][:d.Len], lost); err != nil {
			return nil, fmt.Errorf("copy: %d bytes at offset %d: %w", d.Len, d.Off, err)
		}
	}
	if buf != nil {
		clear(buf[end-e.Off:])
	}
	if !s.copy.Sealed {
		if bad, err = s.wrong(e, buf); err != nil {
			return nil, err
		}
	}
	bad = append(bad, lost...)
	s.holds(e, buf, bad)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.read += data.Bytes()
	s.bad = append(s.bad, bad...)
	return bad, nil
}

// mostLost is how much of a copy may be unreadable, in bytes, before its disk is taken to be
// gone.
const mostLost = 16 << 20

// readAt reads a part of the image, and adds to lost the blocks that cannot be read, which
// become zeros.
func (s *store) readAt(e extent.Extent, buf []byte, lost []extent.Extent) ([]extent.Extent, error) {
	err := block.ReadPadded(s.copy.Image, buf, e.Off)
	if err == nil {
		return lost, nil
	}
	if c, ok := s.copy.Image.(*sealed); ok && !c.gone(err) {
		return lost, err // the vault cannot be reached: nothing is known of the rest
	}
	bs := s.copy.State.BlockSize
	for at := int64(0); at < e.Len; {
		n := min(bs-(e.Off+at)%bs, e.Len-at)
		if block.ReadPadded(s.copy.Image, buf[at:at+n], e.Off+at) != nil {
			clear(buf[at : at+n])
			lost = append(lost, extent.Extent{Off: e.Off + at, Len: n})
			if s.lose(n, err) && !s.copy.Unchecked {
				return lost, err
			}
		}
		at += n
	}
	return lost, nil
}

// lose counts what could not be read, and reports whether it is too much.
func (s *store) lose(n int64, err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost += n
	s.lostTo = cmp.Or(s.lostTo, err)
	return s.lost > mostLost
}

// put writes blocks, zeros and others apart.
func (s *store) put(to transaction.Writer, e extent.Extent, buf []byte) error {
	bs := s.copy.State.BlockSize
	for at := int64(0); at < e.Len; {
		zero := block.IsZero(buf[at:min(at+bs, e.Len)])
		end := min(at+bs, e.Len)
		for end < e.Len && block.IsZero(buf[end:min(end+bs, e.Len)]) == zero {
			end = min(end+bs, e.Len)
		}
		data := buf[at:end]
		if zero {
			data = nil
		}
		if err := s.write(to, extent.Extent{Off: e.Off + at, Len: end - at}, data); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// write writes blocks; data is nil for zeros.
func (s *store) write(to transaction.Writer, e extent.Extent, data []byte) error {
	switch {
	case data == nil && s.empty && to == transaction.Writer(s.target):
		return nil
	case data == nil:
		if err := to.Zero(e); err != nil {
			return err
		}
	default:
		if _, err := to.WriteAt(data, e.Off); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.written += e.Len
	return nil
}
