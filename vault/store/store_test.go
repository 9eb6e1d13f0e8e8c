package store_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"tidemark/block"
	"tidemark/internal/faulttree"
	"tidemark/vault/store"
)

// At each change of the tree the power is cut, or the change fails. What Put said is there
// is there afterwards, and whole; what it did not say is whole or not there.
func TestAnObjectIsWholeOrNotThere(t *testing.T) {
	data := bytes.Repeat([]byte("data"), 1000)
	for seed := range uint64(20) {
		for n, ended := 0, false; !ended; n++ {
			for _, cut := range []bool{true, false} {
				w := faulttree.New(rand.New(rand.NewPCG(seed, uint64(n))))
				if cut {
					w.CutAfter(n)
				} else {
					w.FailAfter(n)
				}
				s := store.OnFiles("world", w)
				first := s.Put(t.Context(), "packs/ab/x", data)
				second := s.Put(t.Context(), "packs/ab/y", data)
				removed := s.Remove(t.Context(), "packs/ab/y")
				ended = first == nil && second == nil && removed == nil
				if !cut {
					w.CutAfter(0)
					if s.Put(t.Context(), "z", nil) == nil {
						t.Fatal("no cut")
					}
				}
				w.Restart()
				s = store.OnFiles("world", w)
				whole(t, s, "packs/ab/x", data, first == nil)
				whole(t, s, "packs/ab/y", data, false)
				if err := s.Put(t.Context(), "packs/ab/x", data); err != nil {
					t.Errorf("seed %d, change %d: again: %v", seed, n, err)
				}
				if removed == nil && second == nil {
					if _, err := s.Get(t.Context(), "packs/ab/y", 0, 1, nil); !errors.Is(err, store.ErrNotExist) {
						t.Errorf("seed %d, change %d: what was removed: %v", seed, n, err)
					}
				}
			}
		}
	}
}

func whole(t *testing.T, s store.Store, name string, data []byte, must bool) {
	t.Helper()
	got, err := s.Get(t.Context(), name, 0, 1<<20, nil)
	switch {
	case errors.Is(err, store.ErrNotExist) && !must:
	case err != nil || !bytes.Equal(got, data):
		t.Errorf("%s: %d bytes, %v; said to be there: %v", name, len(got), err, must)
	}
}

// What is large goes past the page cache, where the address of the bytes allows it, but for its end.
func TestALargeObjectIsWhatWasPut(t *testing.T) {
	s := store.OnFiles("folder", store.Local(filepath.Join(t.TempDir(), "vault")))
	defer s.Close()
	room := block.AlignedBuffer(3<<20 + 200)
	rand.NewChaCha8([32]byte{1}).Read(room)
	for name, data := range map[string][]byte{
		"whole-pages": room[:2<<20], "with-an-end": room[:3<<20+77], "at-an-odd-address": room[1 : 3<<20], "short-of-direct": room[:1<<20-1],
	} {
		if err := s.Put(t.Context(), name, data); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got, err := s.Get(t.Context(), name, 0, 4<<20, nil); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes, %v, want %d", name, len(got), err, len(data))
		}
	}
}
