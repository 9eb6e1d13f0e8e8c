package apply

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"tidemark/extent"
	"tidemark/format/redo"
	"tidemark/transfer/mirror"
)

// Apply reads a stream to its end and brings it to the target. The error wraps
// erastream.ErrNotStream, ErrDamaged or ErrOutOfBounds for a stream that is
// refused, ErrChanged, the cause of ctx, or that of a device; unless it wraps
// ErrPending the target is as it was before. When ctx ends after the commit, the
// change is finished.
func (s *Store) Apply(ctx context.Context, r io.Reader, o Options) (Report, error) {
	rep, err := s.apply(ctx, r, o)
	if err != nil {
		err = fmt.Errorf("apply: %w", err)
	}
	return rep, err
}

func (s *Store) apply(ctx context.Context, r io.Reader, o Options) (Report, error) {
	before, err := s.target.Fingerprint()
	if err != nil {
		return Report{}, err
	}
	f, err := s.folder.Open(journalFile, true)
	if err != nil {
		return Report{}, err
	}
	defer f.Close()
	to := journalSink{redo.NewWriter(f)}
	rep, j, err := s.journal(ctx, f, to, r, o)
	if err == nil {
		err = context.Cause(ctx)
	}
	if err == nil && j != nil {
		err = s.commit(f, to.w, j, before.MTime, before.Written)
	}
	if err != nil || j == nil {
		return rep, errors.Join(err, s.discard())
	}
	if err := s.finish(j, f, o); err != nil {
		return rep, fmt.Errorf("%w: %w", ErrPending, err)
	}
	return rep, nil
}

// journal reads the stream into the journal and seals it. Without a change there
// is no journal.
func (s *Store) journal(ctx context.Context, f mirror.File, to journalSink, r io.Reader, o Options) (Report, *redo.Reader, error) {
	rep, err := pump(ctx, r, o.limit(s.seen), to, o)
	if err != nil {
		return rep, nil, err
	}
	rep.Size = o.sizeAfter(s.seen, rep.end)
	if rep.Bytes == 0 && rep.Size == s.seen {
		return rep, nil, nil
	}
	if err := to.w.Seal(s.seen, rep.Size); err != nil {
		return rep, nil, err
	}
	rep.Journal = to.w.Len()
	j, err := redo.NewReader(f, rep.Journal)
	return rep, j, err
}

type journalSink struct{ w *redo.Writer }

func (j journalSink) data(off int64, p []byte) error { return j.w.Data(off, p) }

func (j journalSink) zero(off, length int64) error {
	return j.w.Zero(extent.Extent{Off: off, Len: length})
}

// commit makes sure that nobody else has written to the target and that it has
// room, binds the journal to it, and makes it what the next Open would finish.
func (s *Store) commit(f mirror.File, w *redo.Writer, j *redo.Reader, mtime int64, written uint64) error {
	now, err := s.target.Fingerprint()
	if err != nil {
		return err
	}
	if now.Size != s.seen || now.MTime != mtime || now.Written != written {
		return ErrChanged
	}
	if err := s.reserve(j); err != nil {
		return err
	}
	is, err := digest(s.target) // room for it may have changed its times
	if err == nil {
		err = w.Bind(is)
	}
	if err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := s.folder.Rename(journalFile, readyFile); err != nil {
		return err
	}
	if err := s.folder.Sync(); err != nil {
		// It may be durable or not: now it must be finished.
		return fmt.Errorf("%w: %w", ErrPending, err)
	}
	return nil
}

// reserve makes sure that the target has room for the data of the journal: a full
// disk is noticed while the target is the old one.
func (s *Store) reserve(j *redo.Reader) error {
	var run extent.Extent
	flush := func() error {
		if run.Empty() {
			return nil
		}
		return s.target.Reserve(run)
	}
	err := j.Each(func(e redo.Entry) error {
		switch {
		case e.Zero():
			return nil
		case run.End() == e.Off:
			run.Len += e.Len
			return nil
		}
		err := flush()
		run = e.Extent
		return err
	})
	if err == nil {
		err = flush()
	}
	return err
}

// discard forgets the change, unless it was committed.
func (s *Store) discard() error {
	err := s.folder.Remove(journalFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
