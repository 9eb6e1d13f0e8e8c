package faultdisk

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
)

// Change is something that makes new content of old, so that the target is always one of
// the two whatever happens.
type Change struct {
	World func(rng *rand.Rand) *World // a disk with the old content
	Run   func(w *World) error        // makes the new content of it
	// Recover brings to an end what a crash of Run left.
	Recover func(w *World) error
	// Committed reports whether the error of Run says that the change will be
	// finished.
	Committed func(error) bool
	// Content returns what counts of a world; nil stands for World.Content.
	Content  func(w *World) []byte
	Old, New []byte
}

// Crash cuts the power in, and fails, each operation of the change once; and after each
// failure, as if the process had died of it, cuts the power in each operation of the
// recovery. What a recovery leaves must be old or new, and both must be seen.
func (c Change) Crash(t *testing.T, seed uint64) {
	t.Helper()
	if c.Content == nil {
		c.Content = (*World).Content
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	sawOld, sawNew := false, false
	for n, ended := 0, false; !ended; n++ {
		w := c.World(rng)
		w.CutAfter(n)
		err := c.Run(w)
		if ended = !w.IsOff(); ended != (err == nil) {
			t.Fatalf("seed %d cut %d: %v", seed, n, err)
		}
		if ended {
			c.is(t, w, c.New, "seed %d: without a crash", seed)
			break
		}
		w.Restart()
		isNew := c.calm(t, w, rng, "seed %d cut %d", seed, n)
		sawOld, sawNew = sawOld || !isNew, sawNew || isNew
	}
	if !bytes.Equal(c.Old, c.New) && !(sawOld && sawNew) {
		t.Errorf("seed %d: old %v, new %v: the cuts did not reach both", seed, sawOld, sawNew)
	}
	for n := 0; c.fail(t, rng, seed, n); n++ {
		for m := 0; c.failThenCut(t, rng, seed, n, m); m++ {
		}
	}
}

// fail fails operation n, and reports whether there was one.
func (c Change) fail(t *testing.T, rng *rand.Rand, seed uint64, n int) bool {
	t.Helper()
	w := c.World(rng)
	w.FailAfter(n)
	err := c.Run(w)
	w.Calm()
	switch {
	case err == nil:
		c.is(t, w, c.New, "seed %d fail %d: no error", seed, n)
		return false
	case c.Committed != nil && c.Committed(err):
		if err := c.Recover(w); err != nil {
			t.Fatalf("seed %d fail %d: recover: %v", seed, n, err)
		}
		c.is(t, w, c.New, "seed %d fail %d: committed", seed, n)
	case c.Committed != nil:
		c.is(t, w, c.Old, "seed %d fail %d: %v", seed, n, err)
	}
	return true
}

// failThenCut fails operation n of the change, and cuts the power in operation m of the
// recovery. It reports whether there was one.
func (c Change) failThenCut(t *testing.T, rng *rand.Rand, seed uint64, n, m int) bool {
	t.Helper()
	w := c.World(rng)
	w.FailAfter(n)
	if c.Run(w) == nil {
		t.Fatalf("seed %d fail %d: no error", seed, n)
	}
	w.CutAfter(m)
	if err := c.Recover(w); err == nil {
		w.Calm()
		c.calm(t, w, rng, "seed %d fail %d", seed, n)
		return false
	} else if !w.IsOff() {
		t.Fatalf("seed %d fail %d cut %d: recover: %v", seed, n, m, err)
	}
	w.Restart()
	c.calm(t, w, rng, "seed %d fail %d cut %d", seed, n, m)
	return true
}

// calm brings the disk to rest, with more cuts and failures on the way, and reports
// whether it holds the new content.
func (c Change) calm(t *testing.T, w *World, rng *rand.Rand, when string, args ...any) bool {
	t.Helper()
	for i := range 3 {
		if n := rng.IntN(16); i%2 == 0 {
			w.CutAfter(n)
		} else {
			w.FailAfter(n)
		}
		if err := c.Recover(w); err != nil && !w.IsOff() && !errors.Is(err, ErrInjected) {
			t.Fatalf(when+": recover: %v", append(args, err)...)
		}
		if w.IsOff() {
			w.Restart()
		}
	}
	w.Calm()
	if err := c.Recover(w); err != nil {
		t.Fatalf(when+": recover: %v", append(args, err)...)
	}
	got := c.Content(w)
	if !bytes.Equal(got, c.New) && !bytes.Equal(got, c.Old) {
		t.Fatalf(when+": neither old nor new", args...)
	}
	return bytes.Equal(got, c.New)
}

func (c Change) is(t *testing.T, w *World, want []byte, when string, args ...any) {
	t.Helper()
	if !bytes.Equal(c.Content(w), want) {
		t.Fatalf(when+", and the content is another", args...)
	}
}
