package sinktest

import (
	"context"
	"errors"
	"slices"
	"sync"

	"tidemark/extent"
	"tidemark/track"
	"tidemark/transfer"
)

// ErrInjected is what the step chosen to fail returns.
var ErrInjected = errors.New("sinktest: injected failure")

// Memory is a sink in memory, for tests of the engine. It fails, or dies, at a chosen
// step: a call of Begin, Put, Checkpoint, Seal, Publish or Finish. A Memory that died
// forgets the transaction that was not committed, and finishes one that was, when it is
// opened again.
type Memory struct {
	Block int64 // bytes of a block

	mu      sync.Mutex
	have    transfer.Have
	content []byte
	pending *memoryTxn // committed, not finished
	runs    []transfer.RunRecord
	steps   int
	failAt  int
	dieAt   int
	dead    bool
	// Before, if not nil, is told of each step before it is made.
	Before func(step string)
}

// NewMemory returns an empty sink.
func NewMemory(block int64) *Memory { return &Memory{Block: block, failAt: -1, dieAt: -1} }

// FailAfter makes the nth step from now fail, counted from zero.
func (m *Memory) FailAfter(n int) { m.steps, m.failAt, m.dieAt = 0, n, -1 }

// CutAfter makes the sink die in the nth step from now, counted from zero.
func (m *Memory) CutAfter(n int) { m.steps, m.failAt, m.dieAt = 0, -1, n }

// Calm ends what FailAfter and CutAfter planned.
func (m *Memory) Calm() { m.failAt, m.dieAt = -1, -1 }

// IsOff reports whether the sink has died.
func (m *Memory) IsOff() bool { return m.dead }

// Steps returns how many steps there were since the last plan.
func (m *Memory) Steps() int { return m.steps }

// Restart opens the sink again.
func (m *Memory) Restart() {
	m.Calm()
	m.dead = false
}

// Open opens the sink for one run, which finishes what was committed.
func (m *Memory) Open(int64) (transfer.Sink, func() error, error) {
	if m.dead {
		return nil, nil, ErrInjected
	}
	if m.pending != nil {
		m.pending.apply()
	}
	return m, func() error { return nil }, nil
}

// Content returns the copy, nil while there is none.
func (m *Memory) Content() []byte {
	if !m.have.Complete {
		return nil
	}
	return slices.Clone(m.content)
}

// Runs returns the history.
func (m *Memory) Runs() []transfer.RunRecord { return m.runs }

// step decides the fate of one step. m.mu is held.
func (m *Memory) step(name string) error {
	if m.Before != nil {
		m.Before(name)
	}
	if m.dead {
		return ErrInjected
	}
	n := m.steps
	m.steps++
	m.dead = n == m.dieAt
	if m.dead || n == m.failAt {
		return ErrInjected
	}
	return nil
}

// Have implements transfer.Sink.
func (m *Memory) Have() transfer.Have {
	h := m.have
	h.Block = m.Block
	return h
}

// Begin implements transfer.Sink.
func (m *Memory) Begin(_ context.Context, size int64, _ func(transfer.Event)) (transfer.Txn, extent.Set, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.step("begin"); err != nil {
		return nil, extent.Set{}, err
	}
	t := &memoryTxn{m: m, content: make([]byte, size)}
	copy(t.content, m.content)
	return t, extent.Set{}, nil
}

type memoryTxn struct {
	m         *Memory
	content   []byte
	journaled int64
	sealed    *transfer.Commit
	state     transfer.TxnState
}

func (t *memoryTxn) Put(chunks []transfer.Chunk) (int64, error) {
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	if err := t.m.step("put"); err != nil {
		return 0, err
	}
	var written int64
	for _, c := range chunks {
		at := t.content[c.Off:c.End()]
		data := c.Data
		if data == nil {
			data = make([]byte, c.Len)
		}
		if !slices.Equal(at, data) {
			written += int64(copy(at, data))
		}
	}
	t.journaled += written
	return written, nil
}

func (t *memoryTxn) NextPass() {}

func (t *memoryTxn) Checkpoint(copied int64, mark track.Mark) error {
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	if err := t.m.step("checkpoint"); err != nil {
		return err
	}
	if !t.m.have.Complete {
		t.m.content = slices.Clone(t.content)
		t.m.have = transfer.Have{Size: int64(len(t.content)), Copied: copied, Mark: mark}
	}
	return nil
}

func (t *memoryTxn) Seal(c transfer.Commit) error {
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	t.sealed = &c
	return t.m.step("seal")
}

func (t *memoryTxn) Publish() error {
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	if err := t.m.step("publish"); err != nil {
		return err
	}
	t.state, t.m.pending = transfer.TxnCommitted, t
	return nil
}

func (t *memoryTxn) Finish() error {
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	if err := t.m.step("finish"); err != nil {
		return err
	}
	t.apply()
	return nil
}

func (t *memoryTxn) apply() {
	t.m.content, t.m.pending, t.state = t.content, nil, transfer.TxnFinished
	t.m.have = transfer.Have{Size: int64(len(t.content)), Mark: t.sealed.Mark, Complete: true}
	t.m.runs = append(t.m.runs, t.sealed.Run)
}

func (t *memoryTxn) Abort(r transfer.RunRecord) error {
	t.m.runs = append(t.m.runs, r)
	return nil
}

func (t *memoryTxn) State() transfer.TxnState { return t.state }

func (t *memoryTxn) Journaled() int64 { return t.journaled }
