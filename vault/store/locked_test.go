package store_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/minio/minio-go/v7"

	"tidemark/extent"
	format "tidemark/format/vault"
	"tidemark/vault"
	"tidemark/vault/store"
)

const testLock = 24 * time.Hour

// asked counts what is locked anew.
type asked struct {
	store.Store
	n atomic.Int32
}

func (a *asked) Lock(ctx context.Context, name string, until time.Time) (time.Time, error) {
	a.n.Add(1)
	return a.Store.Lock(ctx, name, until)
}

// lockedVault is a vault with a lock, as one machine after the other sees it.
type lockedVault struct {
	*vault.Vault
	t       *testing.T
	s       *asked
	key     *age.X25519Identity
	disk    vault.Disk
	endLock func(name string)
}

// open opens it as a machine with a cache of its own does.
func (l *lockedVault) open(cache string) {
	l.t.Helper()
	v, err := vault.Open(l.t.Context(), l.s, vault.Options{Identities: []age.Identity{l.key}, Cache: cache})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { v.Close() })
	l.Vault = v
	if l.disk, err = v.AddDisk(l.t.Context(), format.Disk{Name: "disk"}); err != nil {
		l.t.Fatal(err)
	}
}

// backup makes a point of data, of which all is put that lies in changed.
func (l *lockedVault) backup(base *vault.Point, data []byte, changed extent.Extent) *vault.Point {
	l.t.Helper()
	w, err := l.Begin(l.t.Context(), vault.From{Disk: l.disk.ID, Size: int64(len(data)), Base: base})
	if err != nil {
		l.t.Fatal(err)
	}
	err = w.Copy(bytes.NewReader(data), extent.NewSet(changed))
	var p vault.Point
	if err == nil {
		p, err = w.Commit(format.Point{Moment: time.Now()})
	}
	if err = errors.Join(err, w.Close()); err != nil {
		l.t.Fatal(err)
	}
	return &p
}

func (l *lockedVault) names(prefix string) (names []string) {
	l.t.Helper()
	err := l.s.List(l.t.Context(), prefix, func(i store.Info) error {
		names = append(names, i.Name)
		return nil
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return names
}

// left is the shortest time for which objects are still locked.
func (l *lockedVault) left(names ...string) time.Duration {
	l.t.Helper()
	var all []time.Duration
	for _, name := range names {
		end, err := l.s.Locked(l.t.Context(), name)
		if err != nil {
			l.t.Fatal(err)
		}
		all = append(all, time.Until(end))
	}
	return slices.Min(all)
}

func (l *lockedVault) prune(dry bool) vault.Pruned {
	l.t.Helper()
	did, err := l.Prune(l.t.Context(), vault.PruneOptions{Now: true, DryRun: dry})
	if err != nil {
		l.t.Fatal(err)
	}
	return did
}

func (l *lockedVault) whole(p *vault.Point, want []byte) {
	l.t.Helper()
	got := make([]byte, len(want))
	if _, err := l.Reader(l.t.Context(), *p).ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		l.t.Errorf("%v has other bytes: %v", p.Name, err)
	}
}

// In a vault with a lock nobody removes a point, or what it needs, before its time: not forget, not
// prune, and not who has the keys of the bucket. After that all of it goes.
func TestAVaultWithALock(t *testing.T) {
	c, endpoint, endLock := store.LockedBucket(t)
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	l := &lockedVault{t: t, s: &asked{Store: store.OpenLocked(t, endpoint)}, key: key, endLock: endLock}
	if err := vault.InitLocked(t.Context(), l.s, testLock, key.Recipient()); err != nil {
		t.Fatal(err)
	}
	mine := t.TempDir()
	l.open(mine)
	disk := make([]byte, 2<<20)
	whole := extent.Extent{Len: int64(len(disk))}
	rand.NewChaCha8([32]byte{1}).Read(disk)
	first := l.backup(nil, disk, whole)
	old := l.names(format.PacksPrefix)
	if n := l.s.n.Swap(0); n != 3 { // vault, keys and disks of others
		t.Errorf("%d objects were locked anew, want 3", n)
	}
	rand.NewChaCha8([32]byte{2}).Read(disk)
	second := l.backup(first, disk, whole)
	if n := l.s.n.Load(); n != 0 {
		t.Errorf("%d objects were locked that are locked long enough", n)
	}
	l.refusedWhileLocked(first, l.names(format.KeysPrefix)[0])
	needed := append(l.names(format.KeysPrefix), format.HeaderName, format.DiskName(l.disk.ID))
	for _, name := range l.names(format.PacksPrefix) {
		if !slices.Contains(old, name) {
			needed = append(needed, name)
		}
	}
	if left := l.left(append(needed, old...)...); left < testLock*4/3 {
		t.Errorf("what points need is locked for %v", left)
	}
	if left := l.left(l.names(format.PointsPrefix)...); left < testLock-time.Minute || left > testLock+time.Minute {
		t.Errorf("points are locked for %v", left)
	}

	// Another machine, or this one later, locks what is to be locked longer, and that alone.
	for _, name := range needed {
		l.endLock(name)
	}
	l.open(t.TempDir())
	l.s.n.Store(0)
	disk[5] ^= 1
	third := l.backup(second, disk, extent.Extent{Len: 4096})
	if n := int(l.s.n.Load()); n != len(needed) {
		t.Errorf("%d objects were locked anew, want %d", n, len(needed))
	}
	if left := l.left(needed...); left < testLock*4/3 {
		t.Errorf("what the third point needs is locked for %v", left)
	}
	l.whole(third, disk)
	l.pruned(first, old)
	l.whole(third, disk)
	if all, current := store.Versions(t, c, ""), l.names(""); len(all) != len(current) {
		t.Errorf("%d versions of %d objects are left", len(all), len(current))
	}

	// A thief of the bucket's keys removes all.
	for _, name := range l.names("") {
		if err := c.RemoveObject(t.Context(), "locked", "some/prefix/"+name, minio.RemoveObjectOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := vault.Open(t.Context(), l.s, vault.Options{}); !errors.Is(err, vault.ErrNoVault) {
		t.Errorf("%v", err)
	}
	if n, err := store.Undelete(t.Context(), l.s.Store, false); err != nil || n == 0 {
		t.Errorf("%d objects were brought back: %v", n, err)
	}
	l.open(mine)
	l.whole(third, disk)
	if points, err := l.Points(t.Context(), format.ID{}); err != nil || len(points) != 2 {
		t.Errorf("%d points, want 2: %v", len(points), err)
	}
	if sum, err := l.Verify(t.Context(), vault.VerifyOptions{Data: true}); err != nil || sum.Damages != 0 {
		t.Errorf("%+v, %v", sum, err)
	}
}

func (l *lockedVault) refusedWhileLocked(p *vault.Point, key string) {
	l.t.Helper()
	var locked *store.LockedError
	if err := l.Forget(l.t.Context(), p.Name); !errors.As(err, &locked) || time.Until(locked.Until) < testLock-time.Minute {
		l.t.Errorf("forget: %v", err)
	}
	id, err := format.ParseID(strings.TrimPrefix(key, format.KeysPrefix))
	if err != nil {
		l.t.Fatal(err)
	}
	if _, err := l.AddKey(l.t.Context(), l.key.Recipient()); err != nil {
		l.t.Fatal(err)
	}
	if err := l.RemoveKey(l.t.Context(), id); !errors.Is(err, store.ErrLocked) {
		l.t.Errorf("a key: %v", err)
	}
}

// pruned forgets a point whose lock has ended: what only it needs goes when its lock has ended, too.
func (l *lockedVault) pruned(p *vault.Point, packs []string) {
	l.t.Helper()
	l.endLock(p.Name.String())
	if err := l.Forget(l.t.Context(), p.Name); err != nil {
		l.t.Fatal(err)
	}
	for _, dry := range []bool{true, false, false} {
		did := l.prune(dry)
		if did.Removed != 0 || did.Freed != 0 || did.Locked != len(packs) || did.LockedBytes < 2<<20 || time.Until(*did.LockedUntil) < testLock {
			l.t.Errorf("dry %v: %+v", dry, did)
		}
	}
	for _, name := range packs {
		l.endLock(name)
	}
	l.open(l.t.TempDir())
	if did := l.prune(false); did.Removed != len(packs) || did.Locked != 0 || did.LockedUntil != nil {
		l.t.Errorf("%+v", did)
	}
	if dead := l.names(format.DeadPrefix); len(dead) != 0 {
		l.t.Errorf("%v", dead)
	}
}

func TestALockIsRefusedWhereItWouldNotHold(t *testing.T) {
	_, endpoint, _ := store.LockedBucket(t)
	folder, err := store.Open(t.Context(), t.TempDir(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []store.Store{folder, store.OpenS3At(t, endpoint)} {
		if err := vault.InitLocked(t.Context(), s, testLock); !errors.Is(err, store.ErrNoLock) {
			t.Errorf("%v: %v", s, err)
		}
		if _, err := vault.Open(t.Context(), s, vault.Options{}); !errors.Is(err, vault.ErrNoVault) {
			t.Errorf("%v: %v", s, err)
		}
	}
	for _, lock := range []time.Duration{-1, time.Millisecond, time.Second + 1, 200 * 365 * 24 * time.Hour} {
		if err := vault.InitLocked(t.Context(), store.OpenLocked(t, endpoint), lock); err == nil {
			t.Errorf("a lock of %v", lock)
		}
	}
	// A copy of such a vault in a folder can be read, and takes no new points.
	if err := folder.Put(t.Context(), format.HeaderName, format.Header{ID: format.ID{1}, Open: &format.Master{1}, Lock: testLock}.Encode()); err != nil {
		t.Fatal(err)
	}
	v, err := vault.Open(t.Context(), folder, vault.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if points, err := v.Points(t.Context(), format.ID{}); err != nil || len(points) != 0 {
		t.Error(err)
	}
	if _, err := v.Begin(t.Context(), vault.From{Disk: format.ID{1}, Size: 1}); !errors.Is(err, store.ErrNoLock) {
		t.Error(err)
	}
}
