package vault

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	format "tidemark/format/vault"
	"tidemark/internal/faulttree"
	"tidemark/vault/store"
)

// A disk that is full below the vault costs the point that was on its way, and nothing else; and what
// is freed can be used.
func TestAFullDiskBelowTheVault(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=6m"); err != nil {
		t.Fatalf("mount a small tmpfs (root): %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, 0) })
	s := store.OnFiles(dir, store.Local(filepath.Join(dir, "vault")))
	t.Cleanup(func() { s.Close() })
	if err := Init(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	v := open(t, s, Options{})
	first := point(t, v, From{Size: 4 << 20}, map[int64][]byte{0: noise(1, 4<<20)})
	w, err := v.Begin(t.Context(), From{Disk: format.ID{9}, Size: 4 << 20, Base: &first})
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Put(0, noise(2, 4<<20))
	if err == nil {
		_, err = w.Commit(format.Point{Moment: time.Now()})
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%v, want ENOSPC", err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	sum, err := v.Verify(t.Context(), VerifyOptions{Data: true, Damage: func(d Damage) { t.Errorf("%+v", d) }})
	if err != nil || sum.Points != 1 {
		t.Errorf("%+v, %v", sum, err)
	}
	if err := v.Forget(t.Context(), first.Name); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Prune(t.Context(), PruneOptions{Now: true}); err != nil {
		t.Fatal(err)
	}
	third := point(t, v, From{Size: 4 << 20}, map[int64][]byte{0: noise(3, 4<<20)})
	if got := at(t, v, third, 0, 4<<20); !bytes.Equal(got, noise(3, 4<<20)) {
		t.Error("it has other bytes")
	}
}

// The clock of the store was a year ahead, and is set right, in the middle of everything.
func TestAStoreWhoseClockWasAYearAhead(t *testing.T) {
	const year = 365 * 24 * time.Hour
	world := faulttree.New(rand.New(rand.NewPCG(1, 1)))
	s := store.OnFiles("world", world)
	if err := Init(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	v := open(t, s, Options{})
	kept := point(t, v, From{Size: 1 << 20}, map[int64][]byte{0: noise(1, 1<<20)})
	world.Pass(year)
	gone := point(t, v, From{Size: 1 << 20}, map[int64][]byte{0: noise(2, 1<<20)})
	if _, err := v.takeLease(t.Context(), backup); err != nil { // by somebody who died
		t.Fatal(err)
	}
	world.Pass(-year)
	if err := v.Forget(t.Context(), gone.Name); err != nil {
		t.Fatal(err)
	}
	// What was written a year ahead counts as just written; so it waits, but nobody is refused.
	if did, err := v.Prune(t.Context(), PruneOptions{}); err != nil || did.Writers != 0 || did.Removed != 0 {
		t.Errorf("%+v, %v", did, err)
	}
	if did, err := v.Prune(t.Context(), PruneOptions{Now: true}); err != nil || did.Removed != 1 {
		t.Errorf("%+v, %v", did, err)
	}
	if got := at(t, open(t, s, Options{}), kept, 0, 1<<20); !bytes.Equal(got, noise(1, 1<<20)) {
		t.Error("it has other bytes")
	}
}

// A pack that is mostly not needed gets a generation without that: half of it and more is freed, and a
// reader that knew the old one goes on.
func TestPruneRewritesWhatIsMostlyNotNeeded(t *testing.T) {
	world := faulttree.New(rand.New(rand.NewPCG(1, 1)))
	s := store.OnFiles("world", world)
	if err := Init(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	v, reader := open(t, s, Options{}), open(t, s, Options{})
	old := point(t, v, From{Size: 8 << 20}, map[int64][]byte{0: noise(1, 8<<20)})
	fresh := point(t, v, From{Size: 8 << 20, Base: &old}, map[int64][]byte{1 << 20: noise(2, 7<<20)})
	want := at(t, reader, fresh, 0, 8<<20)
	if err := v.Forget(t.Context(), old.Name); err != nil {
		t.Fatal(err)
	}
	world.Pass(time.Hour)
	for _, c := range []struct {
		passes time.Duration
		want   Pruned
	}{
		{time.Hour, Pruned{Rewritten: 1, Declared: 1}},
		{DefaultGrace, Pruned{Waiting: 1}},
		{DefaultGrace, Pruned{Removed: 1}},
		{DefaultGrace, Pruned{}},
	} {
		would, err := v.Prune(t.Context(), PruneOptions{DryRun: true})
		if err != nil {
			t.Fatal(err)
		}
		did, err := v.Prune(t.Context(), PruneOptions{})
		if err != nil || did != would {
			t.Errorf("%+v, %v; the dry run said %+v", did, err, would)
		}
		if did.Rewritten != c.want.Rewritten || did.Declared != c.want.Declared || did.Waiting != c.want.Waiting || did.Removed != c.want.Removed || did.Needed != 2 {
			t.Errorf("%+v, want %+v", did, c.want)
		}
		if c.want.Rewritten > 0 && (did.Written < 1<<20 || did.Written > 2<<20 || did.Later < 8<<20) || c.want.Removed > 0 && did.Freed < 8<<20 {
			t.Errorf("%+v", did)
		}
		for _, v := range []*Vault{v, reader, open(t, s, Options{})} {
			if got := at(t, v, fresh, 0, 8<<20); !bytes.Equal(got, want) {
				t.Error("other bytes")
			}
		}
		world.Pass(c.passes)
	}
}
