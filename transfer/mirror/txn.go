package mirror

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"tidemark/extent"
	"tidemark/format/state"
	"tidemark/track"
	"tidemark/transfer"
	"tidemark/transfer/transaction"
)

// txn is one update of a mirror, or a part of its first copy.
type txn struct {
	store  *Store
	origin state.Source
	size   int64 // of the target afterwards, bytes
	// blockSize (bytes) is that of the state, which Checkpoint replaces while Puts are
	// under way.
	blockSize int64
	ctx       context.Context // of Begin: bounds the waits for a filesystem's clock
	// change is nil in a first copy: blocks go straight to the target.
	change *transaction.Txn
	now    transfer.TxnState
	next   state.State // that Seal prepared

	// known covers the blocks that need not be written when their checksum is the one
	// in the sums file.
	known extent.Set
	// tainted says that sums and target may differ where known says they agree.
	tainted atomic.Bool

	mu      sync.Mutex
	touched []extent.Extent // put (in place) or journaled since NextPass; guarded by mu

	copied int64 // of a first copy, at the last checkpoint
	mark   track.Mark
}

func newTxn(ctx context.Context, s *Sink, size int64, bad extent.Set) *txn {
	st := s.Store
	bs := st.state.BlockSize
	whole := extent.Extent{Len: min(st.Copied(), size)}
	if size != st.state.Size {
		whole.Len = whole.Len / bs * bs // the last block was short, or becomes so
	}
	t := &txn{
		store: st, origin: s.Origin, size: size, blockSize: bs, ctx: ctx, copied: st.state.Copied, mark: track.Mark(st.state.Mark),
		known: extent.NewSet(whole).Subtract(bad.Align(bs, st.state.Size)),
	}
	t.tainted.Store(!bad.Empty())
	return t
}

// NextPass implements transfer.Txn. In a first copy the checksums of what was put are by
// then those of the target; otherwise the journal has overtaken the sums, and a block that
// was journaled is journaled again.
func (t *txn) NextPass() {
	t.mu.Lock()
	defer t.mu.Unlock()
	touched := extent.NewSet(t.touched...)
	t.touched = nil
	if t.change == nil {
		t.known = t.known.Union(touched)
		return
	}
	t.known = t.known.Subtract(touched)
	t.change.NextPass()
}

// Checkpoint implements transfer.Txn.
func (t *txn) Checkpoint(copied int64, mark track.Mark) (err error) {
	defer explain(&err, "checkpoint")
	if t.change != nil {
		return nil
	}
	if err = t.checkpoint(copied, mark, state.Target{}); err == nil {
		t.copied, t.mark = copied, mark
	}
	return err
}

func (t *txn) checkpoint(copied int64, mark track.Mark, looks state.Target) error {
	s := t.store
	if err := s.sync(); err != nil {
		return err
	}
	next := s.state
	next.Copied, next.Mark, next.Target = copied, string(mark), looks
	return s.saveState(next)
}

// sync makes target and sums durable; neither is trusted until a state that is saved
// afterwards says so. Once it has failed it fails for good; see package transaction.
func (s *Store) sync() error {
	if s.syncFailed == nil {
		s.syncFailed = s.target.Sync()
	}
	if s.syncFailed == nil {
		s.syncFailed = s.sumsFile.Sync()
	}
	return s.syncFailed
}

// Seal implements transfer.Txn.
func (t *txn) Seal(c transfer.Commit) (err error) {
	defer explain(&err, "commit")
	t.next = t.store.state
	t.next.Update++
	t.next.Size = t.size
	t.next.Complete, t.next.Copied, t.next.Foreign = true, 0, false
	t.next.Damage = nil // Begin had it checked, and what was damaged is copied anew
	t.next.Mark, t.next.Time, t.next.Source = string(c.Mark), c.Time, t.origin
	t.next.AddRun(runOf(c.Run))
	switch {
	case t.change == nil:
		return t.store.sync()
	case !t.journaled():
		return nil
	}
	t.next.Target = state.Target{}
	blob, err := t.next.Encode()
	if err != nil {
		return err
	}
	return t.change.Seal(t.ctx, t.size, blob)
}

// journaled reports whether there is anything to commit that is not on the target yet:
// blocks, or the size, which somebody else may have changed.
func (t *txn) journaled() bool {
	return t.change != nil && (!t.change.Empty() || t.size != t.store.state.Size || !t.store.fits(t.size))
}

// Publish implements transfer.Txn.
func (t *txn) Publish() (err error) {
	defer explain(&err, "commit")
	if t.journaled() {
		err := t.change.Publish()
		if t.change.Committed() {
			t.now = transfer.TxnCommitted
		}
		return err
	}
	looks, trusted := t.store.seen, true
	if t.change == nil {
		if looks, trusted, err = transaction.Look(t.ctx, t.store.target, t.store.folder); err != nil {
			return err
		}
	} else {
		_, trusted = t.change.Seen()
	}
	t.next.Target = remembered(looks, trusted)
	if err = t.store.saveState(t.next); err == nil {
		t.now = transfer.TxnFinished
	}
	return err
}

// remembered is what the state says of how the target looks.
func remembered(looks transaction.Stamp, trusted bool) state.Target {
	if !trusted {
		return state.Target{}
	}
	return state.Target(looks)
}

// Finish implements transfer.Txn.
func (t *txn) Finish() (err error) {
	defer explain(&err, "commit")
	if t.now != transfer.TxnCommitted {
		return nil
	}
	if err = t.change.Finish(t.ctx, t.store.steps(&t.next, nil)); err == nil {
		t.now = transfer.TxnFinished
	}
	return err
}

// Abort implements transfer.Txn.
func (t *txn) Abort(r transfer.RunRecord) (err error) {
	defer explain(&err, "abort")
	s := t.store
	if t.change == nil {
		looks := state.Target{}
		if !t.tainted.Load() && s.sync() == nil {
			now, trusted, err := transaction.Look(t.ctx, s.target, s.folder)
			looks = remembered(now, trusted && err == nil)
		}
		return t.checkpoint(t.copied, t.mark, looks)
	}
	err = t.change.Abort()
	if t.now != transfer.TxnOpen {
		return err
	}
	next := s.state
	next.AddRun(runOf(r))
	// Room that was made for the journal may have changed how the target looks.
	if now, trusted := t.change.Seen(); s.Suspect() == "" && now != s.seen {
		next.Target = remembered(now, trusted)
	}
	return errors.Join(err, s.saveState(next))
}

// State implements transfer.Txn.
func (t *txn) State() transfer.TxnState { return t.now }

// Journaled implements transfer.Txn.
func (t *txn) Journaled() int64 {
	if t.change == nil {
		return 0
	}
	return t.change.Journaled()
}
