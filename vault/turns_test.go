package vault

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	format "tidemark/format/vault"
	"tidemark/vault/store"
)

// turns is a store that lets others act before a call.
type turns struct {
	store.Store
	before func()
}

func (t turns) Put(ctx context.Context, name string, data []byte) error {
	t.before()
	return t.Store.Put(ctx, name, data)
}

func (t turns) Get(ctx context.Context, name string, off, n int64, room []byte) ([]byte, error) {
	t.before()
	return t.Store.Get(ctx, name, off, n, room)
}

func (t turns) List(ctx context.Context, prefix string, each func(store.Info) error) error {
	t.before()
	return t.Store.List(ctx, prefix, each)
}

func (t turns) Remove(ctx context.Context, name string) error {
	t.before()
	return t.Store.Remove(ctx, name)
}

// among returns a model of the same vault for somebody else, before whose calls inner may act.
func (m *model) among(seed uint64, inner func()) *model {
	m.t.Helper()
	other := *m
	other.rng = rand.New(rand.NewPCG(seed, 78))
	other.cache = m.t.TempDir()
	v, err := Open(m.t.Context(), turns{m.store(), inner}, Options{Cache: other.cache})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { v.Close() })
	other.v = v
	return &other
}

// act does something that may be overtaken.
func (m *model) act() {
	var err error
	switch n := m.rng.IntN(10); {
	case n < 4:
		m.now = m.someArray()
		err = m.backup()
	case n < 6:
		err = m.forget()
	default:
		err = m.prune()
	}
	// Between the calls of a writer who is about to withdraw a point that was overtaken, a prune may
	// meet that point, and removes nothing.
	withdrawn := m.inside && errors.Is(err, format.ErrDamaged)
	if err != nil && !errors.Is(err, ErrOvertaken) && !errors.Is(err, ErrBusy) && !withdrawn {
		m.t.Error(err)
	}
}

func (m *model) someArray() []byte {
	for _, array := range m.points {
		return array
	}
	return nil
}

// sometimes returns what calls act before one call in so many, and not while that is under way.
func sometimes(seed uint64, often int, act func()) func() {
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(seed, 79))
	return func() {
		if !mu.TryLock() {
			return
		}
		defer mu.Unlock()
		if rng.IntN(often) == 0 {
			act()
		}
	}
}

// Backups, prunes and forgetting come between any two calls of each other, while the clock of the
// store runs away: every point that appears is what it should be, and stays that.
func TestWritersAndPrunesBetweenAnyTwoCalls(t *testing.T) {
	for _, seed := range seeds(3) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			m := newModel(t, seed)
			m.impatient = true
			innermost := m.among(seed, func() {})
			inner := m.among(seed+1, sometimes(seed, 12, innermost.act))
			innermost.inside, inner.inside = true, true
			outer := m.among(seed+2, sometimes(seed+1, 6, inner.act))
			for range 12 {
				outer.act()
				m.settle()
				m.check()
			}
			t.Logf("%d generations were written", innermost.made+inner.made+outer.made)
			for range 3 {
				m.world.Pass(DefaultGrace + time.Hour)
				if _, err := m.v.Prune(t.Context(), PruneOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			sum, err := m.v.Verify(t.Context(), VerifyOptions{})
			if err != nil || sum.Unneeded != 0 || sum.Damages != 0 {
				t.Errorf("%+v, %v", sum, err)
			}
			m.check()
		})
	}
}
