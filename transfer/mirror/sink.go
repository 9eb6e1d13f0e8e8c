package mirror

import (
	"context"
	"errors"
	"fmt"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/format/sidecar"
	"tidemark/track"
	"tidemark/transfer"
)

// Sink is the mirror as the engine sees it.
type Sink struct {
	Store  *Store
	State  sidecar.State  // in the place of Store's, where there is none
	Name   string         // of the target, for messages
	Origin sidecar.Source // what to remember of the source
	// Blank says that Store was made just now, over a target that reads as zeros.
	Blank bool
	// Other says that Store is a complete mirror of another source: nothing it remembers
	// but the content of the target is of use.
	Other bool
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

// Begin implements transfer.Sink.
func (s *Sink) Begin(ctx context.Context, size int64, tell func(transfer.Event)) (transfer.Txn, extent.Set, error) {
	bad, err := s.check(ctx, tell)
	if err != nil {
		return nil, bad, err
	}
	u, err := s.Store.Begin(size, bad, s.Blank)
	if err != nil {
		return nil, bad, err
	}
	return &txn{Update: u, origin: s.Origin}, bad, nil
}

// check returns the blocks of a target that someone else wrote to.
func (s *Sink) check(ctx context.Context, tell func(transfer.Event)) (extent.Set, error) {
	if m := s.Store.Misfit(); !m.Empty() {
		tell(transfer.Event{Text: fmt.Sprintf("%s: it is not %d bytes long, as it should be: setting that right", s.Name, s.Store.State().Size)})
	}
	why := s.Store.Suspect()
	if why == "" {
		return extent.Set{}, nil
	}
	tell(transfer.Event{Text: fmt.Sprintf("%s: %s: checking it against its checksums", s.Name, why)})
	total, done := s.Store.State().Size, int64(0)
	bad, err := s.Store.Check(ctx, func(n int64) {
		done += n
		tell(transfer.Event{Phase: "verify", Done: done, Total: total})
	})
	if err == nil && !bad.Empty() {
		tell(transfer.Event{Text: fmt.Sprintf("%s: %d bytes were changed by someone else: copying them again", s.Name, bad.Bytes())})
	}
	return bad, err
}

// txn is an Update as the engine sees it.
type txn struct {
	*Update
	origin sidecar.Source
	copied int64
	mark   track.Mark
	done   bool
}

func (t *txn) Put(chunks []transfer.Chunk) (int64, error) {
	all := make([]Chunk, len(chunks))
	for i, c := range chunks {
		data := c.Data
		if data == nil {
			data = make([]byte, c.Len)
		}
		all[i] = Chunk{Off: c.Off, Data: data, Sums: sumsOf(data, t.blockSize)}
	}
	return t.Update.Put(all)
}

// sumsOf returns the checksum of each block; that of zeros is zero.
func sumsOf(data []byte, blockSize int64) []sidecar.Sum {
	sums := make([]sidecar.Sum, sidecar.Blocks(int64(len(data)), blockSize))
	for i := range sums {
		at := int64(i) * blockSize
		b := data[at:min(at+blockSize, int64(len(data)))]
		if !block.IsZero(b) {
			sums[i] = sidecar.SumOf(b)
		}
	}
	return sums
}

func (t *txn) Checkpoint(copied int64, mark track.Mark) error {
	t.copied, t.mark = copied, mark
	return t.Update.Checkpoint(copied, string(mark), false)
}

func (t *txn) Seal(c transfer.Commit) error {
	return t.Update.Seal(func(s *sidecar.State) {
		s.Mark, s.Time, s.Source = string(c.Mark), c.Time, t.origin
		s.AddRun(runOf(c.Run))
	})
}

func (t *txn) Finish() error {
	err := t.Update.Finish()
	t.done = err == nil
	return err
}

func (t *txn) Abort(r transfer.RunRecord) error {
	err := t.Update.Abort()
	if t.inPlace {
		return errors.Join(err, t.Update.Checkpoint(t.copied, string(t.mark), true))
	}
	return errors.Join(err, t.store.Record(runOf(r)))
}

func (t *txn) Journaled() int64 { return t.JournalBytes() }

func (t *txn) State() transfer.TxnState {
	switch {
	case t.done, t.Committed() && !t.Update.Journaled():
		return transfer.TxnFinished
	case t.Committed():
		return transfer.TxnCommitted
	}
	return transfer.TxnOpen
}

func runOf(r transfer.RunRecord) sidecar.Run {
	return sidecar.Run{
		Time: r.Time, Tracker: r.Tracker, View: r.View, Changed: r.Changed, Read: r.Read, Written: r.Written,
		FrozenMS: float64(r.Frozen.Microseconds()) / 1000, TookMS: float64(r.Took.Microseconds()) / 1000, Outcome: r.Outcome,
	}
}
