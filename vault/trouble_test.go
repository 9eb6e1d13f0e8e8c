package vault

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	format "tidemark/format/vault"
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
	world, s := simulated(t)
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
	world, s := simulated(t)
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

// The clock of the store jumps by a year, ahead or back, while a point is written of whose packs a prune
// knows no need: the point appears whole, or not at all.
func TestAClockThatJumpsByAYear(t *testing.T) {
	for _, jump := range []time.Duration{365 * 24 * time.Hour, -365 * 24 * time.Hour} {
		world, s := simulated(t)
		v := open(t, s, Options{})
		old := point(t, v, From{Size: 1 << 20}, map[int64][]byte{0: noise(1, 1<<20)})
		w, err := v.Begin(t.Context(), From{Disk: format.ID{8}, Size: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		if _, err := w.Put(0, noise(1, 1<<20)); err != nil {
			t.Fatal(err)
		}
		if err := v.Forget(t.Context(), old.Name); err != nil {
			t.Fatal(err)
		}
		held, err := v.Leases(t.Context())
		if err != nil || len(held) != 1 {
			t.Fatal(held, err)
		}
		if err := v.Unlock(t.Context(), held[0]); err != nil { // by somebody who took it for dead
			t.Fatal(err)
		}
		other := open(t, s, Options{})
		for range 2 { // declares, and after the jump ahead removes
			if _, err := other.Prune(t.Context(), PruneOptions{}); err != nil {
				t.Fatal(err)
			}
			world.Pass(jump)
		}
		p, err := w.Commit(format.Point{Moment: time.Now()})
		if err != nil && !errors.Is(err, ErrOvertaken) {
			t.Fatal(err)
		}
		all, listing := v.Points(t.Context(), format.ID{})
		if listing != nil || len(all) != map[bool]int{true: 1}[err == nil] {
			t.Errorf("%v: %d points, %v, %v", jump, len(all), listing, err)
		}
		if err == nil && !bytes.Equal(at(t, open(t, s, Options{}), p, 0, 1<<20), noise(1, 1<<20)) {
			t.Errorf("%v: it has other bytes", jump)
		}
		next := point(t, other, From{Size: 1 << 20}, map[int64][]byte{0: noise(1, 1<<20)})
		if got := at(t, open(t, s, Options{}), next, 0, 1<<20); !bytes.Equal(got, noise(1, 1<<20)) {
			t.Errorf("%v: the next has other bytes", jump)
		}
	}
}

// The clock of the machine that backs up is a year ahead, and then a year behind: the next point is made
// from the one that was written last, and rules keep what they should.
func TestAMachineWhoseClockIsWrong(t *testing.T) {
	const year = 365 * 24 * time.Hour
	world, s := simulated(t)
	v := open(t, s, Options{})
	now := time.Now()
	var base *Point
	for i, wrong := range []time.Duration{0, year, 0, -year, 0} {
		w, err := v.Begin(t.Context(), From{Disk: format.ID{9}, Size: 1 << 20, Base: base})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Put(0, noise(byte(i), 4096)); err != nil {
			t.Fatal(err)
		}
		p, err := w.Commit(format.Point{Moment: now.Add(wrong + time.Duration(i)*time.Hour)})
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		world.Pass(time.Hour)
		if base, err = v.Newest(t.Context(), format.ID{9}); err != nil || base == nil || base.Name != p.Name {
			t.Fatalf("the newest is %+v, want %v: %v", base, p.Name, err)
		}
	}
	all, err := v.Points(t.Context(), format.ID{9})
	if err != nil || len(all) != 5 {
		t.Fatal(len(all), err)
	}
	kept, err := Retention{Within: Span{Days: 1}}.Keep(all, now.Add(5*time.Hour))
	if err != nil || len(kept) != 4 { // all but the one of a year ago: the future is not over
		t.Errorf("%d are kept: %v", len(kept), err)
	}
}

// later makes an object one of the next version, or of this one again.
func later(t *testing.T, path string, by int8) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[8] += byte(by)
	sum := blake3.Sum256(b[:len(b)-32])
	copy(b[len(b)-32:], sum[:])
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A vault, or a point, that a later version wrote is refused as that, and Prune leaves what it needs.
func TestAVaultOfALaterVersion(t *testing.T) {
	s, root := folder(t)
	v := open(t, s, Options{})
	p := point(t, v, From{Size: 1 << 20}, map[int64][]byte{0: noise(1, 1<<20)})
	header, manifest := filepath.Join(root, format.HeaderName), filepath.Join(root, p.Name.String())
	later(t, header, 1)
	if _, err := Open(t.Context(), s, Options{}); !errors.Is(err, format.ErrNewer) {
		t.Error(err)
	}
	later(t, header, -1)
	later(t, manifest, 1)
	if _, err := v.Points(t.Context(), format.ID{}); !errors.Is(err, format.ErrNewer) {
		t.Error(err)
	}
	for _, now := range []bool{false, true} {
		if did, err := v.Prune(t.Context(), PruneOptions{Now: now}); !errors.Is(err, format.ErrNewer) || did.Removed+did.Declared > 0 {
			t.Errorf("%+v, %v", did, err)
		}
	}
	later(t, manifest, -1)
	if got := at(t, open(t, s, Options{}), p, 0, 1<<20); !bytes.Equal(got, noise(1, 1<<20)) {
		t.Error("it has other bytes")
	}
}

// A vault whose key files are lost is one that no key opens.
func TestAVaultWhoseKeysAreLost(t *testing.T) {
	me := identity(t)
	s, root := folder(t, me.Recipient())
	keys, err := filepath.Glob(filepath.Join(root, "keys", "*"))
	if err != nil || len(keys) != 1 {
		t.Fatal(keys, err)
	}
	if err := os.Rename(keys[0], filepath.Join(root, "lost.key")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), s, Options{Identities: []age.Identity{me}}); !errors.Is(err, format.ErrKey) {
		t.Errorf("without a key file: %v", err)
	}
	if err := os.Rename(filepath.Join(root, "lost.key"), keys[0]); err != nil {
		t.Fatal(err)
	}
	open(t, s, Options{Identities: []age.Identity{me}})
}
