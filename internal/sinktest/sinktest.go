// Package sinktest is the suite that every transfer.Sink passes, and a sink in memory
// for the tests of the engine.
//
// The suite knows a sink by its interface alone, and a world that keeps the sink's copy
// while the sink is closed, fails at a chosen change, or dies there.
package sinktest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"tidemark/extent"
	"tidemark/track"
	"tidemark/transfer"
)

// World keeps the copy of one sink.
type World interface {
	// Open opens the sink for one run, for a source of size bytes, and recovers what a
	// crash left. Close what it returns last.
	Open(size int64) (sink transfer.Sink, closer func() error, err error)
	// Content returns the copy as it is now, nil where it is not complete.
	Content() []byte
	FailAfter(n int) // the nth change from now fails
	CutAfter(n int)  // everything fails from the nth change on, until Restart
	Calm()           // ends what the two planned
	IsOff() bool
	Restart()
}

// Run runs the suite on sinks with blocks of the given size (bytes) in worlds that are
// made by newWorld.
func Run(t *testing.T, block int64, newWorld func(t *testing.T, rng *rand.Rand) World) {
	s := suite{block: block, newWorld: newWorld}
	for name, f := range map[string]func(*testing.T){
		"AFirstCopyIsCompleteOnceItIsFinished":   s.firstCopy,
		"AnUpdateChangesWhatWasPut":              s.update,
		"ALaterPassWins":                         s.passes,
		"TheSizeFollowsTheSource":                s.sizes,
		"AnAbortLeavesTheOldCopy":                s.abort,
		"PutsMayRunTogether":                     s.concurrent,
		"TheCopyIsOldOrNewWhateverFails":         s.failures,
		"TheCopyIsOldOrNewWhereverThePowerIsCut": s.cuts,
	} {
		t.Run(name, f)
	}
}

// Resumes runs the suite of sinks that go on with a first copy at a checkpoint.
func Resumes(t *testing.T, block int64, newWorld func(t *testing.T, rng *rand.Rand) World) {
	s := suite{block: block, newWorld: newWorld}
	t.Run("AFirstCopyGoesOnAtItsCheckpoint", s.checkpoint)
}

type suite struct {
	block    int64
	newWorld func(t *testing.T, rng *rand.Rand) World
}

func (s suite) world(t *testing.T, seed uint64) World {
	t.Helper()
	return s.newWorld(t, rand.New(rand.NewPCG(seed, 9)))
}

// pattern returns blocks of content, the last one short, that differ by fill.
func (s suite) pattern(blocks int, fill byte) []byte {
	p := make([]byte, int64(blocks)*s.block-512)
	for i := range p {
		if n := int64(i) / s.block; (n+int64(fill))%5 != 0 { // every fifth block is zeros
			p[i] = fill + byte(n)
		}
	}
	return p
}

// change is one transaction in the making.
type change struct {
	sink   transfer.Sink
	txn    transfer.Txn
	must   extent.Set
	closer func() error
}

func begin(w World, size int64) (*change, error) {
	sink, closer, err := w.Open(size)
	if err != nil {
		return nil, err
	}
	txn, must, err := sink.Begin(context.Background(), size, func(transfer.Event) {})
	if err != nil {
		return nil, errors.Join(err, closer())
	}
	return &change{sink, txn, must, closer}, nil
}

// chunk returns what content holds from off on; zeros as nil data.
func chunk(content []byte, off, length int64) transfer.Chunk {
	e := extent.Extent{Off: off, Len: min(length, int64(len(content))-off)}
	c := transfer.Chunk{Extent: e, Data: content[e.Off:e.End()]}
	if len(bytes.Trim(c.Data, "\x00")) == 0 {
		c.Data = nil
	}
	return c
}

// put hands over all blocks of content that differ from have, the last one first.
func (s suite) put(txn transfer.Txn, content, have []byte) error {
	for off := (int64(len(content)) - 1) / s.block * s.block; off >= 0; off -= s.block {
		c := chunk(content, off, s.block)
		if c.End() <= int64(len(have)) && bytes.Equal(content[c.Off:c.End()], have[c.Off:c.End()]) {
			continue
		}
		if _, err := txn.Put([]transfer.Chunk{c}); err != nil {
			return err
		}
	}
	return nil
}

// commit brings a transaction to its end.
func commit(txn transfer.Txn, mark track.Mark) error {
	c := transfer.Commit{Mark: mark, Time: time.Unix(1e9, 0), Run: transfer.RunRecord{Time: time.Unix(1e9, 0), Outcome: "ok"}}
	for _, step := range []func() error{func() error { return txn.Seal(c) }, txn.Publish, txn.Finish} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// bring makes content the copy. state is that of the transaction, if it came to one.
func (s suite) bring(w World, content []byte, mark track.Mark) (state transfer.TxnState, err error) {
	have := w.Content()
	c, err := begin(w, int64(len(content)))
	if err != nil {
		return transfer.TxnOpen, err
	}
	defer func() { err = errors.Join(err, c.closer()) }()
	if !c.sink.Have().Complete || !c.must.Empty() {
		have = nil
	}
	c.txn.NextPass()
	if err = s.put(c.txn, content, have); err == nil {
		err = commit(c.txn, mark)
	}
	if state = c.txn.State(); err != nil && state == transfer.TxnOpen {
		err = errors.Join(err, c.txn.Abort(transfer.RunRecord{Outcome: err.Error()}))
	}
	return state, err
}

func (s suite) mustBring(t *testing.T, w World, content []byte, mark track.Mark) {
	t.Helper()
	state, err := s.bring(w, content, mark)
	if err != nil || state != transfer.TxnFinished {
		t.Fatalf("state %d, %v", state, err)
	}
	s.wantCopy(t, w, content, mark)
}

func (s suite) wantCopy(t *testing.T, w World, content []byte, mark track.Mark) {
	t.Helper()
	sink, closer, err := w.Open(int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	defer closer()
	have := sink.Have()
	if !have.Complete || have.Size != int64(len(content)) || have.Mark != mark || have.Block != s.block {
		t.Errorf("have %+v, want all of %d bytes at mark %q", have, len(content), mark)
	}
	if got := w.Content(); !bytes.Equal(got, content) {
		t.Errorf("the copy of %d bytes is not what was put (%d bytes)", len(got), len(content))
	}
}

func (s suite) firstCopy(t *testing.T) {
	w := s.world(t, 1)
	content := s.pattern(7, 1)
	c, err := begin(w, int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	if have := c.sink.Have(); have.Complete || have.Mark != "" || have.Copied != 0 {
		t.Errorf("a new sink has %+v", have)
	}
	c.txn.NextPass()
	if err := s.put(c.txn, content, nil); err != nil {
		t.Fatal(err)
	}
	if w.Content() != nil || c.txn.State() != transfer.TxnOpen {
		t.Error("the copy is complete before it was committed")
	}
	if err := errors.Join(commit(c.txn, "m:1"), c.closer()); err != nil {
		t.Fatal(err)
	}
	s.wantCopy(t, w, content, "m:1")
}

func (s suite) update(t *testing.T) {
	w := s.world(t, 2)
	content := s.pattern(9, 1)
	s.mustBring(t, w, content, "m:1")
	for i := range byte(4) {
		next := bytes.Clone(content)
		copy(next[int64(i)*s.block:], s.pattern(2, 7+i)) // two blocks, one of them zeros at times
		s.mustBring(t, w, next, track.Mark(fmt.Sprint("m:", 2+i)))
		content = next
	}
	s.mustBring(t, w, content, "m:9") // nothing but the mark
}

func (s suite) passes(t *testing.T) {
	w := s.world(t, 3)
	s.mustBring(t, w, s.pattern(6, 1), "m:1")
	c, err := begin(w, 6*s.block-512)
	if err != nil {
		t.Fatal(err)
	}
	last := s.pattern(6, 4)
	for _, fill := range []byte{2, 1, 3, 4} {
		c.txn.NextPass()
		if err := s.put(c.txn, s.pattern(6, fill), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(commit(c.txn, "m:2"), c.closer()); err != nil {
		t.Fatal(err)
	}
	s.wantCopy(t, w, last, "m:2")
}

func (s suite) sizes(t *testing.T) {
	w := s.world(t, 4)
	for i, blocks := range []int{4, 9, 3, 3, 5} {
		s.mustBring(t, w, s.pattern(blocks, byte(i)), track.Mark(fmt.Sprint("m:", i)))
	}
}

func (s suite) abort(t *testing.T) {
	w := s.world(t, 5)
	content := s.pattern(6, 1)
	s.mustBring(t, w, content, "m:1")
	c, err := begin(w, int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	c.txn.NextPass()
	if err := errors.Join(s.put(c.txn, s.pattern(6, 2), content), c.txn.Abort(transfer.RunRecord{Outcome: "given up"}), c.closer()); err != nil {
		t.Fatal(err)
	}
	s.wantCopy(t, w, content, "m:1")
	s.mustBring(t, w, s.pattern(6, 3), "m:2")
}

func (s suite) checkpoint(t *testing.T) {
	w := s.world(t, 6)
	content := s.pattern(8, 1)
	at := 5 * s.block
	c, err := begin(w, int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	c.txn.NextPass()
	err = errors.Join(s.put(c.txn, content[:at], nil), c.txn.Checkpoint(at, "m:1"),
		c.txn.Abort(transfer.RunRecord{Outcome: "given up"}), c.closer())
	if err != nil {
		t.Fatal(err)
	}
	if c, err = begin(w, int64(len(content))); err != nil {
		t.Fatal(err)
	}
	if have := c.sink.Have(); have.Complete || have.Copied != at || have.Mark != "m:1" {
		t.Fatalf("have %+v, want %d bytes at m:1", have, at)
	}
	c.txn.NextPass()
	for off := at; off < int64(len(content)); off += s.block {
		if _, err := c.txn.Put([]transfer.Chunk{chunk(content, off, s.block)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(commit(c.txn, "m:2"), c.closer()); err != nil {
		t.Fatal(err)
	}
	s.wantCopy(t, w, content, "m:2")
}

func (s suite) concurrent(t *testing.T) {
	w := s.world(t, 7)
	for i := range byte(2) { // a first copy, and an update
		content := s.pattern(40, i)
		c, err := begin(w, int64(len(content)))
		if err != nil {
			t.Fatal(err)
		}
		c.txn.NextPass()
		var running sync.WaitGroup
		for worker := range 4 {
			running.Go(func() {
				for n := worker; n < 40; n += 4 {
					if _, err := c.txn.Put([]transfer.Chunk{chunk(content, int64(n)*s.block, s.block)}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		if err := c.txn.Checkpoint(0, ""); err != nil { // Puts behind it are under way
			t.Error(err)
		}
		running.Wait()
		mark := track.Mark(fmt.Sprint("m:", i))
		if err := errors.Join(commit(c.txn, mark), c.closer()); err != nil {
			t.Fatal(err)
		}
		s.wantCopy(t, w, content, mark)
	}
}

// failures lets each change of an update fail in turn.
func (s suite) failures(t *testing.T) {
	s.disturb(t, func(w World, n int) { w.FailAfter(n) })
}

// cuts ends everything at each change of an update in turn, and again at each change of
// the recovery.
func (s suite) cuts(t *testing.T) {
	s.disturb(t, func(w World, n int) { w.CutAfter(n) })
}

// most bounds the changes of one update.
const most = 500

func (s suite) disturb(t *testing.T, plan func(w World, n int)) {
	before, after := s.pattern(6, 1), s.pattern(7, 2)
	for n := range most {
		w := s.world(t, uint64(n))
		s.mustBring(t, w, before, "m:1")
		plan(w, n)
		state, err := s.bring(w, after, "m:2")
		off := w.IsOff()
		if off {
			w.Restart()
		}
		w.Calm()
		if err == nil {
			if n == 0 {
				t.Fatal("nothing was disturbed")
			}
			return // the update had fewer changes
		}
		if n%2 == 1 {
			s.recover(t, w, n)
			off = true
		}
		s.wantEither(t, w, state, off, before, after)
	}
	t.Fatalf("an update makes more than %d changes", most)
}

// recover opens the sink, cut off at a change that grows with every attempt.
func (s suite) recover(t *testing.T, w World, n int) {
	t.Helper()
	for cut := range most {
		w.CutAfter(cut)
		_, closer, err := w.Open(int64(7)*s.block - 512)
		if err == nil {
			err = closer()
		}
		off := w.IsOff()
		if off {
			w.Restart()
		}
		w.Calm()
		if !off && err != nil {
			t.Fatalf("change %d: a recovery that nothing disturbed: %v", n, err)
		}
		if !off {
			return
		}
	}
	t.Fatalf("change %d: a recovery makes more than %d changes", n, most)
}

// wantEither wants the old copy or the new one, each with its own mark. Without a crash,
// of the run or of the recovery, the state of the transaction tells which.
func (s suite) wantEither(t *testing.T, w World, state transfer.TxnState, off bool, before, after []byte) {
	t.Helper()
	_, closer, err := w.Open(int64(len(after)))
	if err == nil {
		err = closer()
	}
	if err != nil {
		t.Fatalf("a recovery that nothing disturbed: %v", err)
	}
	got := w.Content()
	isOld, isNew := bytes.Equal(got, before), bytes.Equal(got, after)
	switch {
	case !isOld && !isNew:
		t.Fatalf("the copy of %d bytes is neither old nor new", len(got))
	case !off && isNew != (state != transfer.TxnOpen):
		t.Fatalf("the copy is new: %v, the state of its transaction was %d", isNew, state)
	case isOld:
		s.wantCopy(t, w, before, "m:1")
	default:
		s.wantCopy(t, w, after, "m:2")
	}
}
