package mirror

import (
	"context"
	"time"

	"tidemark/format/state"
	"tidemark/track"
	"tidemark/transfer/transaction"
)

// Gather begins to keep the checksums of a target of size bytes that something else than an update
// brings to what its source was: a restore. There is no mirror before Become; until then the
// checksums are a file that nothing reads. The folder must know of no mirror (see Forget).
func (s *Store) Gather(size, blockSize int64, source state.Source) (err error) {
	defer explain(&err, "keep checksums")
	s.state = state.State{Size: size, BlockSize: blockSize, Source: source}
	return s.createSums(&s.state)
}

// Holds tells that the target gets, or has, data from off on: whole blocks, but for the last one of
// the target. What it is not told of is zeros. Several goroutines may call it.
func (s *Store) Holds(off int64, data []byte) error {
	return s.sums.Write(sumsOf(data, s.state.BlockSize), off)
}

// Become makes it a mirror that equals its source at a mark, which is of the time at. All that Holds
// was told of must be durable in the target. A crash leaves the mirror or none.
func (s *Store) Become(ctx context.Context, mark track.Mark, at time.Time) (err error) {
	defer explain(&err, "begin")
	if err := s.sumsFile.Sync(); err != nil {
		return err
	}
	looks, trusted, err := transaction.Look(ctx, s.target, s.folder)
	if err != nil {
		return err
	}
	next := s.state
	next.Update, next.Complete = 1, true
	next.Mark, next.Time, next.Target = string(mark), at, remembered(looks, trusted)
	return s.saveState(next)
}
