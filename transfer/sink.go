package transfer

import (
	"context"
	"time"

	"tidemark/extent"
	"tidemark/track"
)

// Sink is where the copy of one source goes: a mirror, a stream, a vault. The engine
// knows nothing of how a sink keeps its copy. All sinks pass the suite of
// internal/sinktest.
type Sink interface {
	// Have tells what the sink has of the source. It is asked before Begin.
	Have() Have
	// Begin starts a transaction after which the copy has size bytes. It may take long,
	// because a sink may have to check what it has; tell is called with what happens.
	// The set it returns must be copied whatever the tracker says.
	Begin(ctx context.Context, size int64, tell func(Event)) (Txn, extent.Set, error)
}

// Have is what a sink has of a source.
type Have struct {
	Size  int64 // of the copy, bytes; 0 when there is none yet
	Block int64 // bytes: every chunk but the one at the end of the source is made of whole blocks
	// Mark is the moment of the source that the copy is of: changes count from there.
	// It is "" where no moment is known.
	Mark track.Mark
	// Complete is false until the first copy has ended. Then the bytes before Copied
	// have been copied at Mark or later.
	Complete bool
	Copied   int64
	// Compared says that a first copy goes over content, and that blocks are compared
	// with it before they are written.
	Compared bool
}

// Chunk is the content of a range of the source.
type Chunk struct {
	extent.Extent
	Data []byte // Len bytes, valid until Put returns; nil stands for zeros
}

// TxnState is how far a transaction has come.
type TxnState int

// The states of a transaction.
const (
	// TxnOpen is a transaction of which a crash leaves nothing but the old copy.
	TxnOpen TxnState = iota
	// TxnCommitted is a transaction that will be finished: by Finish, or after a
	// crash when the sink is opened again.
	TxnCommitted
	// TxnFinished is a transaction whose copy is in its place.
	TxnFinished
)

// Txn is one change of a sink: whole, or not there. Its methods are called by one
// goroutine, except Put.
type Txn interface {
	// Put hands over chunks, which do not overlap each other or those of another Put of
	// the same pass. It returns how many bytes differ from what the sink had, and
	// may be called by several goroutines at once.
	Put(chunks []Chunk) (written int64, err error)
	// NextPass says that blocks may be put again from now on; the later Put holds. No
	// Put is under way.
	NextPass()
	// Checkpoint makes the first part of a first copy durable: the bytes before copied
	// were put, and hold what the source held at mark or later. A later run goes on
	// from there. Puts behind copied may be under way.
	Checkpoint(copied int64, mark track.Mark) error
	// Seal makes all that was put durable, along with c. The sink still has the old copy.
	Seal(c Commit) error
	// Publish makes the sealed copy the sink's, in one step. After an error State tells
	// whether it is.
	Publish() error
	// Finish brings the published copy to its place. After an error, or a crash, the
	// next opening of the sink does it.
	Finish() error
	// Abort forgets the transaction, unless it is committed. The run goes into the sink's
	// history, and of a first copy the part before the last checkpoint stays.
	Abort(r RunRecord) error
	// State tells how far the transaction has come.
	State() TxnState
	// Journaled returns how many bytes were written beside the copy.
	Journaled() int64
}

// Commit is what a sink remembers along with a copy.
type Commit struct {
	Mark track.Mark // the source's moment that the copy is of; "" where no tracker vouches for one
	Time time.Time  // of that moment
	Run  RunRecord
	// PostHook is the error of the post-hook of the view; nil also where there was none.
	PostHook error
}

// RunRecord is one line of a sink's history.
type RunRecord struct {
	Time          time.Time
	Tracker, View string
	Changed       int64 // bytes that the tracker named, or the whole source
	Read, Written int64 // bytes
	Frozen, Took  time.Duration
	Outcome       string
}
