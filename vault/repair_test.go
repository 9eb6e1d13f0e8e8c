package vault

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"filippo.io/age"

	"tidemark/extent"
	format "tidemark/format/vault"
	"tidemark/internal/faulttree"
	"tidemark/vault/store"
)

// files returns the objects of a folder whose names begin so.
func files(t *testing.T, s store.Store, prefix string) (names []string) {
	t.Helper()
	err := s.List(t.Context(), prefix, func(i store.Info) error {
		names = append(names, i.Name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// Bytes of packs, a whole pack, a manifest and the object of a disk are damaged or missing: after a
// repair the next point is whole, prune works, and nothing that could be read before cannot be now.
func TestRepairMakesAVaultOneThatCanBeUsed(t *testing.T) {
	for _, c := range []struct {
		name string
		harm func(t *testing.T, root string, s store.Store, points []Point)
		lost int // points that are marked
	}{
		{"nothing", func(*testing.T, string, store.Store, []Point) {}, 0},
		{"a byte of a segment", func(t *testing.T, root string, s store.Store, _ []Point) {
			spoil(t, filepath.Join(root, files(t, s, format.PacksPrefix)[0]), 100)
		}, -1},
		{"the table of a pack", func(t *testing.T, root string, s store.Store, _ []Point) {
			spoil(t, filepath.Join(root, files(t, s, format.PacksPrefix)[0]), -70)
		}, -1},
		{"a pack is gone", func(t *testing.T, root string, s store.Store, _ []Point) {
			if err := os.Remove(filepath.Join(root, files(t, s, format.PacksPrefix)[0])); err != nil {
				t.Fatal(err)
			}
		}, -1},
		{"a manifest", func(t *testing.T, root string, _ store.Store, points []Point) {
			spoil(t, filepath.Join(root, points[0].Name.String()), 50)
		}, 0},
		{"the object of a disk", func(t *testing.T, root string, s store.Store, _ []Point) {
			spoil(t, filepath.Join(root, files(t, s, format.DisksPrefix)[0]), 50)
		}, 0},
	} {
		t.Run(c.name, func(t *testing.T) { repairs(t, c.harm, c.lost) })
	}
}

func spoil(t *testing.T, path string, at int) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[(at+len(b))%len(b)] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func repairs(t *testing.T, harm func(*testing.T, string, store.Store, []Point), lost int) {
	ctx, cache := t.Context(), t.TempDir()
	s, root := folder(t)
	v := open(t, s, Options{Cache: cache})
	d, err := v.AddDisk(ctx, format.Disk{Name: "disk"})
	if err != nil {
		t.Fatal(err)
	}
	const size = 17 << 20
	disk := append(noise(1, 2<<20), make([]byte, size-2<<20)...)
	from := From{Disk: d.ID, Size: size}
	first := point(t, v, from, map[int64][]byte{0: disk[:2<<20]})
	copy(disk[70000:], noise(2, 5000))
	from.Base = &first
	second := point(t, v, from, map[int64][]byte{70000: disk[70000:75000]})
	harm(t, root, s, []Point{first, second})
	would, err := v.Repair(ctx, RepairOptions{Data: true, DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	did, err := v.Repair(ctx, RepairOptions{Data: true})
	if err != nil || did.Lost != would.Lost || did.Aside != would.Aside || did.Damages != would.Damages {
		t.Fatalf("%+v, %v; the dry run said %+v", did, err, would)
	}
	if lost >= 0 && did.Lost != lost || lost < 0 && did.Lost == 0 || len(files(t, s, format.AsidePrefix)) != did.Aside {
		t.Errorf("%+v", did)
	}
	points, err := v.Points(ctx, d.ID)
	if err != nil {
		t.Fatal(err)
	}
	marked := 0
	for _, p := range points {
		if p.Lost {
			marked++
		}
	}
	if marked != did.Lost {
		t.Errorf("%d points are marked, want %d", marked, did.Lost)
	}
	// The next point, of what the source still has.
	w, err := v.Begin(ctx, From{Disk: d.ID, Size: size})
	if err != nil {
		t.Fatal(err)
	}
	err = w.Copy(bytes.NewReader(disk), extent.NewSet(extent.Extent{Len: size}))
	var p Point
	if err == nil {
		p, err = w.Commit(format.Point{Moment: time.Now()})
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	if got := at(t, open(t, s, Options{}), p, 0, size); !bytes.Equal(got, disk) {
		t.Error("the new point has other bytes")
	}
	if _, err := v.Prune(ctx, PruneOptions{Now: true}); err != nil {
		t.Errorf("prune beside points that lost something: %v", err)
	}
	if got := at(t, open(t, s, Options{}), p, 0, size); !bytes.Equal(got, disk) {
		t.Error("after a prune the new point has other bytes")
	}
	for _, old := range points {
		if err := v.Forget(ctx, old.Name); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := v.Prune(ctx, PruneOptions{Now: true}); err != nil {
		t.Error(err)
	}
	if left := files(t, s, format.LostPrefix); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
	sum, err := v.Verify(ctx, VerifyOptions{Data: true, Damage: func(d Damage) { t.Errorf("%+v", d) }})
	if err != nil || sum.Points != 1 {
		t.Errorf("%+v, %v", sum, err)
	}
}

func TestRepairIsRefusedBesideAnybodyAndOfALaterVersion(t *testing.T) {
	s, root := folder(t)
	v := open(t, s, Options{})
	point(t, v, From{Size: 1 << 20}, map[int64][]byte{0: noise(1, 1<<20)})
	w, err := v.Begin(t.Context(), From{Disk: format.ID{9}, Size: 10})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Repair(t.Context(), RepairOptions{}); !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	pack := filepath.Join(root, files(t, s, format.PacksPrefix)[0])
	b, err := os.ReadFile(pack)
	if err != nil {
		t.Fatal(err)
	}
	b[8] = 2 // its version
	if err := os.WriteFile(pack, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Repair(t.Context(), RepairOptions{}); !errors.Is(err, format.ErrNewer) {
		t.Error(err)
	}
	if aside := files(t, s, format.AsidePrefix); len(aside) > 0 {
		t.Errorf("%v", aside)
	}
}

// Points go to a vault of other keys; a copy that is cut off at any call goes on.
func TestCopiesAreWholeWhereverTheyAreCutOff(t *testing.T) {
	me := identity(t)
	s, _ := folder(t)
	v := open(t, s, Options{})
	d, err := v.AddDisk(t.Context(), format.Disk{Name: "disk"})
	if err != nil {
		t.Fatal(err)
	}
	var points []Point
	arrays := map[format.ID][]byte{}
	from := From{Disk: d.ID}
	for i, size := range []int64{2 << 20, 18 << 20, 1<<20 + 512} { // grows, and shrinks
		from.Size = size
		data := noise(byte(i), 300_000)
		p := point(t, v, from, map[int64][]byte{int64(i) * 200_000: data})
		arrays[p.Name.ID] = at(t, v, p, 0, int(size))
		points = append(points, p)
		from.Base = &points[i]
	}
	world := faulttree.New(rand.New(rand.NewPCG(1, 1)))
	other := store.OnFiles("world", world)
	if err := Init(t.Context(), other, me.Recipient()); err != nil {
		t.Fatal(err)
	}
	told, done := 0, false
	for n := 0; !done && n < 1000; n++ {
		to, err := Open(t.Context(), other, Options{Identities: []age.Identity{me}})
		if err != nil {
			t.Fatal(err)
		}
		world.FailAfter(n)
		err = v.CopyTo(t.Context(), to, points, func(Copied) error { return nil })
		world.Calm()
		done = err == nil
		if err != nil && !errors.Is(err, faulttree.ErrInjected) {
			t.Fatal(err)
		}
		if err := to.Close(); err != nil {
			t.Fatal(err)
		}
		told++
	}
	if !done || told < 5 {
		t.Errorf("done: %v, after %d times", done, told)
	}
	to := open(t, other, Options{Identities: []age.Identity{me}})
	all, err := to.Points(t.Context(), format.ID{})
	if err != nil || len(all) != len(points) {
		t.Fatalf("%d points, %v", len(all), err)
	}
	for i, p := range all {
		if got := at(t, to, p, 0, int(p.Size)); !bytes.Equal(got, arrays[p.Name.ID]) || !p.Moment.Equal(points[i].Moment) {
			t.Errorf("%v is another", p.Name)
		}
	}
	there := 0
	err = v.CopyTo(t.Context(), to, points, func(c Copied) error {
		if c.There {
			there++
		}
		return nil
	})
	if err != nil || there != len(points) {
		t.Errorf("%d were there, %v", there, err)
	}
}

func TestWhoDiedAtWorkIsToldAndLetGoOf(t *testing.T) {
	world, s := simulated(t)
	v := open(t, s, Options{})
	w, err := v.Begin(t.Context(), From{Disk: format.ID{9}, Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.Put(0, noise(1, 1<<20)); err != nil {
		t.Fatal(err)
	}
	held, err := v.Leases(t.Context())
	if err != nil || len(held) != 1 || held[0].Ended || held[0].Gone || held[0].Work != backup || held[0].Process != os.Getpid() {
		t.Fatalf("%+v, %v", held, err)
	}
	world.Pass(2 * time.Hour)
	if again, err := v.Leases(t.Context()); err != nil || len(again) != 1 || !again[0].Ended {
		t.Errorf("%+v, %v", again, err)
	}
	// Removed although it is at work, and then all that it stored is removed: it notices.
	if err := v.Unlock(t.Context(), held[0]); err != nil {
		t.Fatal(err)
	}
	if err := w.packs.flush(); err != nil {
		t.Fatal(err)
	}
	if did, err := v.Prune(t.Context(), PruneOptions{Now: true}); err != nil || did.Removed == 0 {
		t.Fatalf("%+v, %v", did, err)
	}
	if _, err := w.Commit(format.Point{Moment: time.Now()}); !errors.Is(err, ErrOvertaken) {
		t.Error(err)
	}
	if all, err := v.Points(t.Context(), format.ID{}); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
}
