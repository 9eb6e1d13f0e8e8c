package restore

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"tidemark/extent"
	"tidemark/format/state"
	"tidemark/transfer/transaction"
)

// stretchBytes is how much is written between two syncs, in bytes: what a crash costs.
const stretchBytes = 128 << 20

// Write brings what set covers of the copy to the target, in place. The bytes before copied
// are in the target already, but for what set has of them. A later Write goes on where the
// last sync was.
func (s *store) Write(ctx context.Context, set extent.Set, copied int64) (err error) {
	defer explain(&err)
	set = s.align(set)
	if !set.Empty() {
		copied = min(copied, set.Extents()[0].Off)
	}
	if err := s.save(s.begin(copied)); err != nil {
		return err
	}
	transaction.Reread(s.target) // or the first sync would report what the last run has reported
	if err := s.resize(); err != nil {
		return err
	}
	synced := s.Written()
	for off := copied; off < s.copy.State.Size; off += s.stretch {
		part := set.Clip(extent.Extent{Off: off, Len: s.stretch})
		if part.Empty() {
			continue
		}
		if err := s.writePart(ctx, part); err != nil {
			return errors.Join(err, s.pause(ctx))
		}
		if s.Written() == synced {
			continue // holes of a copy cost no syncs
		}
		synced = s.Written()
		if err := s.target.Sync(); err != nil {
			return err
		}
		if err := s.save(s.begin(s.sound(min(off+s.stretch, s.copy.State.Size)))); err != nil {
			return err
		}
	}
	if err := s.target.Sync(); err != nil { // of the size
		return err
	}
	return errors.Join(s.damage("all others were restored"), s.pause(ctx))
}

// pageSize is what places past the page cache are multiples of, in bytes.
const pageSize = 4096

// writePart writes what part covers past the page cache, where all of the copy fits that and
// the target can, or else through it.
func (s *store) writePart(ctx context.Context, part extent.Set) error {
	u, ok := s.target.(transaction.Uncached)
	if ok && !s.cached && s.copy.State.Size%pageSize == 0 {
		if past, err := u.Uncached(); err == nil {
			read, written := s.Read(), s.Written()
			err := errors.Join(s.writeTo(ctx, part, past), past.Close())
			if !errors.Is(err, unix.EINVAL) {
				return err
			}
			s.read, s.written = read, written // the target wants larger multiples: all of it again
		}
	}
	s.cached = true
	return s.writeTo(ctx, part, s.target)
}

func (s *store) writeTo(ctx context.Context, part extent.Set, to transaction.Writer) error {
	if s.empty { // there holes need not be made
		return s.eachHeld(ctx, part, s.copy.Image, s.bring(ctx, to))
	}
	return s.each(ctx, part, s.bring(ctx, to))
}

// resize gives an image its size.
func (s *store) resize() error {
	if s.empty {
		if err := s.target.Resize(0); err != nil {
			return err
		}
	}
	return s.target.Resize(s.sizeAfter())
}

// sound is how far the target is what it should be when all before end was written.
func (s *store) sound(end int64) int64 {
	if bad := s.Bad(); !s.copy.Unchecked && !bad.Empty() {
		end = min(end, bad.Extents()[0].Off)
	}
	return end
}

// pause notes how the target looks, so that the next run need not compare what is durable.
func (s *store) pause(ctx context.Context) error {
	if err := s.target.Sync(); err != nil {
		return err
	}
	next := s.record
	looks, trusted, err := transaction.Look(context.WithoutCancel(ctx), s.target, s.folder)
	if err != nil || !trusted {
		return err
	}
	next.Target = state.Target(looks)
	return s.save(next)
}

// sizeAfter is the size that an image has afterwards, in bytes.
func (s *store) sizeAfter() int64 {
	if now, err := s.target.Stamp(); err == nil && now.Kind == transaction.Device {
		return max(now.Size, s.copy.State.Size)
	}
	return s.copy.State.Size
}

// align makes set one of whole blocks.
func (s *store) align(set extent.Set) extent.Set {
	return set.Align(s.copy.State.BlockSize, s.copy.State.Size).Intersect(s.copy.whole())
}

// Commit brings what set covers of the copy to the target, which is then what it was or the
// copy, whatever crashes. The error wraps ErrPending when the next openStore will finish it.
func (s *store) Commit(ctx context.Context, set extent.Set) (err error) {
	defer explain(&err)
	set = s.align(set)
	now, err := s.target.Stamp()
	if err != nil || set.Empty() && now.Size == s.sizeAfter() {
		return err
	}
	t, err := transaction.Begin(ctx, s.target, s.folder)
	if err != nil {
		return err
	}
	err = s.commit(ctx, t, set)
	if t.Committed() {
		if err == nil {
			err = t.Finish(ctx, transaction.Steps{})
		}
		if err != nil {
			err = fmt.Errorf("%w: %w", ErrPending, err)
		}
	}
	return errors.Join(err, t.Abort())
}

func (s *store) commit(ctx context.Context, t *transaction.Txn, set extent.Set) error {
	if err := s.each(ctx, set, s.bring(ctx, journal{t})); err != nil {
		return err
	}
	if err := s.damage("nothing was written"); err != nil {
		return err
	}
	blob, err := s.begin(0).Encode()
	if err != nil {
		return err
	}
	if err := t.Seal(ctx, s.sizeAfter(), append([]byte(blobStart), blob...)); err != nil {
		return err
	}
	s.journaled = t.Journaled()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return t.Publish()
}

// journal is the writer of a transaction.
type journal struct{ txn *transaction.Txn }

// WriteAt implements io.WriterAt.
func (j journal) WriteAt(p []byte, off int64) (int, error) {
	if err := j.txn.Data(off, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Zero implements transaction.Writer.
func (j journal) Zero(e extent.Extent) error { return j.txn.Zero(e) }
