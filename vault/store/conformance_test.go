package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
)

// conform is what every store must do.
func conform(t *testing.T, s Store) {
	t.Helper()
	ctx := t.Context()
	large := make([]byte, 3<<20+17)
	rand.NewChaCha8([32]byte{1}).Read(large)
	objects := map[string][]byte{"vault": []byte("v"), "packs/ab/abc.0": large, "packs/ac/acd.0": []byte("p"), "points/1/x": []byte("x"), "empty": {}}

	t.Run("nothing is there", func(t *testing.T) {
		if names := list(t, s, ""); len(names) != 0 {
			t.Errorf("%v", names)
		}
		if _, err := s.Get(ctx, "packs/ab/abc.0", 0, 10, nil); !errors.Is(err, ErrNotExist) {
			t.Error(err)
		}
		if err := s.Remove(ctx, "packs/ab/abc.0"); err != nil {
			t.Error(err)
		}
	})
	t.Run("what is put is there", func(t *testing.T) {
		for name, data := range objects {
			if err := s.Put(ctx, name, data); err != nil {
				t.Fatal(err)
			}
			read(t, s, name, data)
		}
		want := slices.Sorted(maps.Keys(objects))
		for _, prefix := range []string{"", "packs/", "packs/ab/", "packs/ab/abc.", "pac", "nothing/", "packs/ab"} {
			some := slices.DeleteFunc(slices.Clone(want), func(name string) bool { return !strings.HasPrefix(name, prefix) })
			if got := list(t, s, prefix); !slices.Equal(got, some) {
				t.Errorf("%q: %v, want %v", prefix, got, some)
			}
		}
	})
	t.Run("ranges", func(t *testing.T) {
		n := int64(len(large))
		for _, r := range [][2]int64{{0, 1}, {100, 1 << 20}, {n - 5, 5}, {n - 5, 50}, {n, 10}, {n + 100, 10}} {
			got, err := s.Get(ctx, "packs/ab/abc.0", r[0], r[1], nil)
			if want := large[min(r[0], n):min(r[0]+r[1], n)]; err != nil || !bytes.Equal(got, want) {
				t.Errorf("%v: %d bytes, %v", r, len(got), err)
			}
		}
	})
	t.Run("nothing is replaced", func(t *testing.T) {
		if err := s.Put(ctx, "packs/ab/abc.0", []byte("other")); !errors.Is(err, ErrExists) {
			t.Errorf("other bytes: %v", err)
		}
		if err := s.Put(ctx, "packs/ab/abc.0", large); err != nil {
			t.Errorf("the same bytes: %v", err)
		}
		read(t, s, "packs/ab/abc.0", large)
	})
	t.Run("names that lead out", func(t *testing.T) {
		for _, name := range []string{"", "../x", "a/../b", "/x", "a//b", "x/", "a b", "a\x00"} {
			_, read := s.Get(ctx, name, 0, 1, nil)
			if s.Put(ctx, name, nil) == nil || read == nil || s.Remove(ctx, name) == nil {
				t.Errorf("%q is accepted", name)
			}
		}
	})
	t.Run("what is removed is gone", func(t *testing.T) {
		for name := range objects {
			if err := s.Remove(ctx, name); err != nil {
				t.Error(err)
			}
			if _, err := s.Get(ctx, name, 0, 1, nil); !errors.Is(err, ErrNotExist) {
				t.Error(err)
			}
		}
		if names := list(t, s, ""); len(names) != 0 {
			t.Errorf("%v", names)
		}
	})
	t.Run("one of many wins", func(t *testing.T) { race(t, s) })
	t.Run("a call that was given up", func(t *testing.T) {
		ended, cancel := context.WithCancel(ctx)
		cancel()
		if err := s.Put(ended, "x", nil); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// race puts different bytes under one name from many sides: one of them is told that it won.
func race(t *testing.T, s Store) {
	var wg sync.WaitGroup
	won := make([]error, 8)
	bytesOf := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, 100_000) }
	for i := range won {
		wg.Go(func() { won[i] = s.Put(t.Context(), "race/x", bytesOf(i)) })
	}
	wg.Wait()
	winner := slices.Index(won, nil)
	if winner < 0 {
		t.Fatal(errors.Join(won...))
	}
	for i, err := range won {
		if i != winner && !errors.Is(err, ErrExists) {
			t.Errorf("%d: %v", i, err)
		}
	}
	read(t, s, "race/x", bytesOf(winner))
	if err := s.Remove(t.Context(), "race/x"); err != nil {
		t.Error(err)
	}
}

func read(t *testing.T, s Store, name string, want []byte) {
	t.Helper()
	got, err := s.Get(t.Context(), name, 0, int64(len(want))+1, nil)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes, %v", name, len(got), err)
	}
}

func list(t *testing.T, s Store, prefix string) (names []string) {
	t.Helper()
	err := s.List(t.Context(), prefix, func(i Info) error {
		names = append(names, i.Name)
		if i.Time.IsZero() {
			return fmt.Errorf("%s has no time", i.Name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names
}
