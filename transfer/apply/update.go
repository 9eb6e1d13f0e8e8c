package apply

import (
	"context"
	"errors"
	"fmt"
	"io"

	"tidemark/transfer/transaction"
)

// Apply reads a stream to its end and brings it to the target. The error wraps
// erastream.ErrNotStream, ErrDamaged or ErrOutOfBounds for a stream that is refused,
// transaction.ErrChanged, the cause of ctx, or that of a device; unless it wraps ErrPending
// the target is as it was before. When ctx ends after the commit, the change is finished.
func (s *Store) Apply(ctx context.Context, r io.Reader, o Options) (rep Report, err error) {
	defer explain(&err)
	t, err := transaction.Begin(ctx, s.target, s.folder)
	if err != nil {
		return rep, err
	}
	rep, err = s.commit(ctx, t, r, o)
	if t.Committed() {
		if err == nil {
			err = t.Finish(ctx, transaction.Steps{Progress: o.writing})
		}
		if err != nil {
			err = fmt.Errorf("%w: %w", ErrPending, err)
		}
	}
	return rep, errors.Join(err, t.Abort())
}

// commit reads the stream into the journal, and commits that. A stream that changes nothing
// is not committed.
func (s *Store) commit(ctx context.Context, t *transaction.Txn, r io.Reader, o Options) (Report, error) {
	rep, err := pump(ctx, r, o.limit(s.seen), t, o)
	if err != nil {
		return rep, err
	}
	rep.Size = o.sizeAfter(s.seen, rep.end)
	if rep.Bytes == 0 && rep.Size == s.seen {
		return rep, nil
	}
	if err := t.Seal(ctx, rep.Size, nil); err != nil {
		return rep, err
	}
	rep.Journal = t.Journaled()
	if err := context.Cause(ctx); err != nil {
		return rep, err
	}
	return rep, t.Publish()
}
