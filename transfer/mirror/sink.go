package mirror

import (
	"context"
	"fmt"

	"tidemark/extent"
	"tidemark/format/state"
	"tidemark/track"
	"tidemark/transfer"
	"tidemark/transfer/transaction"
)

// Sink is the mirror as the engine sees it.
type Sink struct {
	Store  *Store       // Exists must hold: Init has been called if need be
	State  state.State  // in the place of Store's, where there is none
	Name   string       // of the target, for messages
	Origin state.Source // what to remember of the source
	// Other says that Store is a complete mirror of another source: nothing it remembers
	// but the content of the target is of use.
	Other bool
	// Refuse, if not nil, is asked before anything is written whether to go on with a target
	// in which somebody else has changed the blocks bad. Its error ends Begin.
	Refuse func(bad extent.Set) error
}

// Have implements transfer.Sink.
func (s *Sink) Have() transfer.Have {
	st := s.State
	if s.Store != nil {
		st = s.Store.State()
	}
	h := transfer.Have{
		Size: st.Size, Block: st.BlockSize, Mark: track.Mark(st.Mark),
		Complete: st.Complete, Copied: st.Copied, Compared: st.Foreign,
	}
	if s.Other {
		h.Mark = "" // of other bytes, perhaps of the same disk
	}
	return h
}

// Begin implements transfer.Sink. The set it returns are the blocks of a target that
// somebody else wrote to.
func (s *Sink) Begin(ctx context.Context, size int64, tell func(transfer.Event)) (_ transfer.Txn, bad extent.Set, err error) {
	defer explain(&err, "begin")
	st := s.Store
	if !st.state.Complete && size != st.state.Size {
		return nil, bad, fmt.Errorf("%w before the first copy ended: %d bytes, not %d", transfer.ErrResized, size, st.state.Size)
	}
	var change *transaction.Txn
	if st.state.Complete {
		if change, err = transaction.Begin(ctx, st.target, st.folder); err == nil {
			st.seen, _ = change.Seen()
		}
	} else {
		transaction.Reread(st.target, st.sumsFile) // what is there is compared, and left where it is the same
		st.seen, err = st.target.Stamp()
	}
	if err == nil {
		bad, err = s.check(ctx, tell)
	}
	if err == nil && s.Refuse != nil {
		err = s.Refuse(bad)
	}
	if err != nil {
		return nil, bad, err
	}
	t := newTxn(ctx, s, size, bad)
	t.change = change
	if st.state.Complete {
		return t, bad, nil
	}
	next := st.state
	next.Target = state.Target{}
	if err = st.saveState(next); err == nil {
		err = st.target.Resize(size) // Init may have been cut off before
	}
	if err != nil {
		return nil, bad, err
	}
	return t, bad, nil
}

// check returns the blocks of a target that somebody else wrote to.
func (s *Sink) check(ctx context.Context, tell func(transfer.Event)) (extent.Set, error) {
	if m := s.Store.Misfit(); !m.Empty() {
		tell(transfer.Event{Text: fmt.Sprintf("%s: it is not %d bytes long, as it should be: setting that right", s.Name, s.Store.State().Size)})
	}
	why := s.Store.Suspect()
	if why == "" || s.Store.Copied() == 0 {
		return extent.Set{}, nil
	}
	tell(transfer.Event{Text: fmt.Sprintf("%s: %s: checking it against its checksums", s.Name, why)})
	total, done := s.Store.Copied(), int64(0)
	bad, err := s.Store.Check(ctx, func(n int64) {
		done += n
		tell(transfer.Event{Phase: "verify", Done: done, Total: total})
	})
	if err == nil && !bad.Empty() {
		tell(transfer.Event{Text: fmt.Sprintf("%s: %d bytes were changed by someone else: copying them again", s.Name, bad.Bytes())})
	}
	return bad, err
}

func runOf(r transfer.RunRecord) state.Run {
	return state.Run{
		Time: r.Time, Tracker: r.Tracker, View: r.View, Changed: r.Changed, Read: r.Read, Written: r.Written,
		FrozenMS: float64(r.Frozen.Microseconds()) / 1000, TookMS: float64(r.Took.Microseconds()) / 1000, Outcome: r.Outcome,
	}
}
