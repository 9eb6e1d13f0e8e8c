package vault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"

	"tidemark/extent"
	format "tidemark/format/vault"
	"tidemark/internal/faulttree"
	"tidemark/vault/store"
)

func identity(t *testing.T) *age.X25519Identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// folder makes a vault in a folder.
func folder(t *testing.T, recipients ...age.Recipient) (store.Store, string) {
	t.Helper()
	root := filepath.Join(t.TempDir(), "vault")
	s, err := store.Open(t.Context(), root, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := Init(t.Context(), s, recipients...); err != nil {
		t.Fatal(err)
	}
	return s, root
}

// simulated makes an empty vault, without a key, in a tree whose clock and faults a test has in its hand.
func simulated(t *testing.T) (*faulttree.World, store.Store) {
	t.Helper()
	world := faulttree.New(rand.New(rand.NewPCG(1, 1)))
	s := store.OnFiles("world", world)
	if err := Init(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	return world, s
}

func open(t *testing.T, s store.Store, o Options) *Vault {
	t.Helper()
	v, err := Open(t.Context(), s, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v
}

// point writes a point of what puts puts.
func point(t *testing.T, v *Vault, from From, puts map[int64][]byte) Point {
	t.Helper()
	if from.Disk.IsZero() {
		from.Disk = format.ID{9}
	}
	w, err := v.Begin(t.Context(), from)
	if err != nil {
		t.Fatal(err)
	}
	for off, data := range puts {
		if _, err := w.Put(off, data); err != nil {
			t.Fatal(err)
		}
	}
	p, err := w.Commit(format.Point{Moment: time.Now()})
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return p
}

func noise(seed byte, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func at(t *testing.T, v *Vault, p Point, off int64, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if got, err := v.Reader(t.Context(), p).ReadAt(b, off); err != nil && !(errors.Is(err, io.EOF) && got == int(p.Size-off)) {
		t.Fatal(err)
	}
	return b
}

func TestKeys(t *testing.T) {
	mine, yours, wrong := identity(t), identity(t), identity(t)
	s, _ := folder(t, mine.Recipient())
	if err := Init(t.Context(), s); !errors.Is(err, store.ErrExists) {
		t.Errorf("init again: %v", err)
	}
	v := open(t, s, Options{Identities: []age.Identity{wrong, mine}})
	p := point(t, v, From{Size: 1000}, map[int64][]byte{0: noise(1, 1000)})
	for _, ids := range [][]age.Identity{nil, {wrong}, {yours}} {
		if _, err := Open(t.Context(), s, Options{Identities: ids}); !errors.Is(err, format.ErrKey) {
			t.Errorf("%v: %v", ids, err)
		}
	}
	keys, err := v.Keys(t.Context())
	if err != nil || len(keys) != 1 || !slices.Equal(keys[0].Kinds, []string{"X25519"}) {
		t.Fatalf("%+v, %v", keys, err)
	}
	if err := v.RemoveKey(t.Context(), keys[0].ID); err == nil || !strings.Contains(err.Error(), "only key") {
		t.Errorf("the last key: %v", err)
	}
	if _, err := v.AddKey(t.Context(), yours.Recipient()); err != nil {
		t.Fatal(err)
	}
	if err := v.RemoveKey(t.Context(), keys[0].ID); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), s, Options{Identities: []age.Identity{mine}}); !errors.Is(err, format.ErrKey) {
		t.Errorf("a removed key: %v", err)
	}
	if got := at(t, open(t, s, Options{Identities: []age.Identity{yours}}), p, 0, 1000); !bytes.Equal(got, noise(1, 1000)) {
		t.Error("another key reads other bytes")
	}
}

func TestAVaultThatIsNotEncryptedIsNotTakenForOneThatIs(t *testing.T) {
	s, _ := folder(t)
	if _, err := Open(t.Context(), s, Options{Identities: []age.Identity{identity(t)}}); !errors.Is(err, ErrNotEncrypted) {
		t.Error(err)
	}
	v := open(t, s, Options{})
	if v.Encrypted() {
		t.Error("it says that it is encrypted")
	}
	if _, err := v.AddKey(t.Context(), identity(t).Recipient()); err == nil {
		t.Error("it got a key")
	}
}

// An object vault that was swapped for one that is not encrypted, or of another id, is noticed.
func TestASwappedHeaderIsNoticed(t *testing.T) {
	me := identity(t)
	s, root := folder(t, me.Recipient())
	_, other := folder(t, me.Recipient())
	theirs, err := os.ReadFile(filepath.Join(other, "vault"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "vault"), theirs, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), s, Options{Identities: []age.Identity{me}}); !errors.Is(err, format.ErrDamaged) {
		t.Error(err)
	}
}

func TestNoVault(t *testing.T) {
	s, err := store.Open(t.Context(), t.TempDir(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), s, Options{}); !errors.Is(err, ErrNoVault) {
		t.Error(err)
	}
}

// Maps of disks of many sizes: each level of the tree, growing and shrinking over it.
func TestDisksOfAnySize(t *testing.T) {
	s, _ := folder(t)
	v := open(t, s, Options{})
	const tib = 1 << 40
	sizes := []int64{5, 16 << 20, 17 << 20, 16 << 30, 17<<30 + 3, 16 * tib, 40 * tib, 3 << 60, 17 << 30, 1 << 20, 20 * tib}
	var base *Point
	have := map[int64][]byte{}
	for i, size := range sizes {
		puts := map[int64][]byte{}
		for _, off := range []int64{0, size / 3 / 4096 * 4096, max(0, size-100)} {
			puts[off] = noise(byte(i*3+len(puts)), int(min(100, size-off)))
			if overlapping(puts, off) {
				delete(puts, off)
			}
		}
		p := point(t, v, From{Size: size, Base: base}, puts)
		for off := range have {
			if off >= size {
				delete(have, off)
			} else {
				have[off] = have[off][:min(int64(len(have[off])), size-off)]
			}
		}
		for off, data := range puts {
			for old := range have {
				if old < off+int64(len(data)) && off < old+int64(len(have[old])) {
					delete(have, old)
				}
			}
			have[off] = data
		}
		for off, data := range have {
			if got := at(t, v, p, off, len(data)); !bytes.Equal(got, data) {
				t.Fatalf("size %d, point %d: other bytes at %d", size, i, off)
			}
		}
		data, err := v.Reader(t.Context(), p).Data(extent.Extent{Len: size})
		if err != nil || data.Bytes() > 4096*int64(len(have)) || data.End() > size {
			t.Errorf("size %d: data %v, %v", size, data.Extents(), err)
		}
		if base != nil {
			found, err := v.Diff(t.Context(), *base, p)
			if err != nil {
				t.Fatal(err)
			}
			for off, data := range puts {
				if !found.Covers(extent.Extent{Off: off, Len: int64(len(data))}) {
					t.Errorf("size %d: what was put at %d is not in %v", size, off, found.Extents())
				}
			}
		}
		base = &p
	}
	sum, err := v.Verify(t.Context(), VerifyOptions{Data: true, Damage: func(d Damage) { t.Errorf("%+v", d) }})
	if err != nil || sum.Points != len(sizes) {
		t.Errorf("%+v, %v", sum, err)
	}
}

func overlapping(puts map[int64][]byte, off int64) bool {
	for other, data := range puts {
		if other != off && off < other+int64(len(data)) && other < off+int64(len(puts[off])) {
			return true
		}
	}
	return false
}

// Cost follows change: nothing changed stores no pack, one block in a hundred stores little more
// than those blocks, and content that is there is not stored again.
func TestCostFollowsChange(t *testing.T) {
	s, _ := folder(t)
	v := open(t, s, Options{})
	const size = 16 << 20
	disk := noise(1, size)
	whole := extent.NewSet(extent.Extent{Len: size})
	write := func(base *Point, set extent.Set) Point {
		w, err := v.Begin(t.Context(), From{Disk: format.ID{9}, Size: size, Base: base})
		if err != nil {
			t.Fatal(err)
		}
		err = w.Copy(bytes.NewReader(disk), set)
		var p Point
		if err == nil {
			p, err = w.Commit(format.Point{Moment: time.Now()})
		}
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		return p
	}
	first := write(nil, whole)
	if first.Stored < size || first.Stored > size*102/100 {
		t.Errorf("the first stored %d bytes of %d", first.Stored, size)
	}
	if p := write(&first, extent.Set{}); p.Stored != 0 || *p.Root != *first.Root {
		t.Errorf("nothing changed: %d bytes stored", p.Stored)
	}
	if p := write(&first, whole); p.Stored != 0 {
		t.Errorf("a scan in which nothing changed: %d bytes stored", p.Stored)
	}
	if p := write(nil, whole); p.Stored > size/500 { // pages
		t.Errorf("a second first copy: %d bytes stored", p.Stored)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	var changed []extent.Extent
	for range size / 4096 / 100 {
		e := extent.Extent{Off: rng.Int64N(size/4096) * 4096, Len: 4096}
		copy(disk[e.Off:], noise(byte(len(changed)), 4096))
		disk[e.Off] = byte(len(changed) >> 8)
		changed = append(changed, e)
	}
	set := extent.NewSet(changed...)
	p := write(&first, set)
	if p.Stored < set.Bytes() || p.Stored > set.Bytes()*110/100 {
		t.Errorf("%d bytes changed, %d stored", set.Bytes(), p.Stored)
	}
	if got := at(t, v, p, 0, size); !bytes.Equal(got, disk) {
		t.Error("it has other bytes")
	}
}

// Blocks that lie scattered are gathered before a page has more entries than it may.
func TestScatteredPagesAreGathered(t *testing.T) {
	s, _ := folder(t)
	v := open(t, s, Options{})
	disk := noise(1, format.LeafSize)
	p := point(t, v, From{Size: format.LeafSize}, map[int64][]byte{0: disk})
	var set extent.Builder
	for off := int64(0); off < format.LeafSize; off += 1024 {
		copy(disk[off:off+512], noise(byte(off>>10), 512))
		set.Add(extent.Extent{Off: off, Len: 512})
	}
	w, err := v.Begin(t.Context(), From{Disk: format.ID{9}, Size: format.LeafSize, Base: &p})
	if err != nil {
		t.Fatal(err)
	}
	err = w.Copy(bytes.NewReader(disk), set.Set())
	if err == nil {
		p, err = w.Commit(format.Point{Moment: time.Now()})
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	l, err := v.treeOf(p.Point).leafAt(t.Context(), 0)
	if err != nil || len(l) != format.LeafSize/format.ChunkSize {
		t.Errorf("%d entries, %v", len(l), err)
	}
	if got := at(t, v, p, 0, len(disk)); !bytes.Equal(got, disk) {
		t.Error("it has other bytes")
	}
}

// A bit of every byte or second of a small vault is flipped: it is noticed, and no read gives other bytes.
func TestEachFlippedBitIsNoticed(t *testing.T) {
	world, s := simulated(t)
	v := open(t, s, Options{})
	if _, err := v.AddDisk(t.Context(), format.Disk{Name: "disk"}); err != nil {
		t.Fatal(err)
	}
	want := append(noise(1, 100), make([]byte, 1<<20)...)
	p := point(t, v, From{Size: int64(len(want))}, map[int64][]byte{0: want})
	err := s.List(t.Context(), "", func(i store.Info) error {
		for bit := int(0); bit < int(i.Size)*8; bit += 9 + bit%5 {
			world.Spoil(i.Name, bit)
			flipped(t, s, i.Name, bit, p, want)
			world.Spoil(i.Name, bit)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func flipped(t *testing.T, s store.Store, name string, bit int, p Point, want []byte) {
	t.Helper()
	v, err := Open(t.Context(), s, Options{})
	if err != nil {
		if name != format.HeaderName {
			t.Errorf("%s bit %d: %v", name, bit, err)
		}
		return
	}
	defer v.Close()
	noticed := 0
	if _, err := v.Verify(t.Context(), VerifyOptions{Data: true, Damage: func(Damage) { noticed++ }}); err != nil {
		t.Errorf("%s bit %d: %v", name, bit, err)
	}
	if _, err := v.Disks(t.Context()); err != nil {
		noticed++
	}
	if noticed == 0 {
		t.Errorf("%s bit %d: not noticed", name, bit)
	}
	got := make([]byte, len(want))
	if _, err := v.Reader(t.Context(), p).ReadAt(got, 0); err == nil && !bytes.Equal(got, want) {
		t.Errorf("%s bit %d: other bytes are read", name, bit)
	}
}

// What a lost pack costs is told, point by point and range by range; the rest is whole.
func TestVerifyTellsWhatIsLost(t *testing.T) {
	s, root := folder(t)
	v := open(t, s, Options{})
	const size = 40 << 20
	first := point(t, v, From{Size: size}, map[int64][]byte{0: noise(1, 100), 20 << 20: noise(2, 65536)})
	second := point(t, v, From{Size: size, Base: &first}, map[int64][]byte{4096: noise(3, 4096)})
	l, err := v.treeOf(second.Point).leafAt(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	pack := l[1].Ref.Pack // of what the second point put
	name := format.PackName{ID: pack}.String()
	whole, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	table, err := v.table(t.Context(), pack)
	if err != nil {
		t.Fatal(err)
	}
	whole[table.Segments[0].Place]++
	if err := os.WriteFile(filepath.Join(root, name), whole, 0o600); err != nil {
		t.Fatal(err)
	}
	var told []Damage
	sum, err := v.Verify(t.Context(), VerifyOptions{Data: true, Damage: func(d Damage) { told = append(told, d) }})
	if err != nil || sum.Points != 2 || len(told) != 2 {
		t.Fatalf("%+v, %+v, %v", sum, told, err)
	}
	if d := told[0]; d.Object != name {
		t.Errorf("%+v", d)
	}
	if d := told[1]; d.Point != second.Name.String() || d.Extent != (extent.Extent{Off: 4096, Len: 4096}) {
		t.Errorf("%+v", d)
	}
	if err := os.Remove(filepath.Join(root, name)); err != nil {
		t.Fatal(err)
	}
	told = nil
	if sum, err = v.Verify(t.Context(), VerifyOptions{Damage: func(d Damage) { told = append(told, d) }}); err != nil || len(told) != 1 || told[0].Point != second.Name.String() || told[0].Extent.Len != size {
		t.Errorf("%+v, %+v, %v", sum, told, err)
	}
	fresh := open(t, s, Options{})
	if _, err := fresh.Reader(t.Context(), second).ReadAt(make([]byte, 10), 0); !errors.Is(err, format.ErrDamaged) {
		t.Error(err)
	}
	if got := at(t, fresh, first, 20<<20, 65536); !bytes.Equal(got, noise(2, 65536)) {
		t.Error("the other point reads other bytes")
	}
	if _, err := fresh.Prune(t.Context(), PruneOptions{Now: true}); !errors.Is(err, format.ErrDamaged) {
		t.Errorf("prune of what cannot be walked: %v", err)
	}
}

// Two writers and a reader work at once, and find each other's chunks afterwards.
func TestWritersDoNotWaitForEachOther(t *testing.T) {
	s, _ := folder(t)
	cache := t.TempDir()
	var wg sync.WaitGroup
	var points [3]Point
	content := noise(1, 10<<20)
	for i := range points {
		wg.Go(func() {
			v, err := Open(t.Context(), s, Options{Cache: cache}) // one of them has the cache
			if err != nil {
				t.Error(err)
				return
			}
			defer v.Close()
			for range 3 {
				p := point(t, v, From{Disk: format.ID{byte(i + 1)}, Size: int64(len(content))}, map[int64][]byte{0: content})
				points[i] = p
			}
		})
	}
	wg.Wait()
	v := open(t, s, Options{Cache: cache})
	for _, p := range points {
		if got := at(t, v, p, 0, len(content)); !bytes.Equal(got, content) {
			t.Errorf("%v has other bytes", p.Name)
		}
	}
	if p := point(t, v, From{Size: int64(len(content))}, map[int64][]byte{0: content}); p.Stored > 1<<20 {
		t.Errorf("%d bytes stored of what is there", p.Stored)
	}
}

// A prune between a backup's start and its end, by a clock that runs away, cannot take from it what
// it needs: the point is whole, or does not appear.
func TestPruneAndABackupThatTakesLong(t *testing.T) {
	for _, c := range []struct {
		name    string
		forget  bool // the base
		lost    bool // the lease: its holder was asleep
		passes  time.Duration
		prunes  int
		refused bool
	}{
		{"quick", false, false, 0, 2, false},
		{"its packs wait for it", false, false, 50 * time.Minute, 1, false},
		{"its lease ended, and its packs are dead", false, true, 25 * time.Hour, 1, true},
		{"its packs are gone", false, true, 25 * time.Hour, 2, true},
		{"its base is gone", true, true, 25 * time.Hour, 2, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			world, s := simulated(t)
			v, other := open(t, s, Options{}), open(t, s, Options{})
			base := point(t, v, From{Size: 3 << 20}, map[int64][]byte{0: noise(1, 1<<20)})
			w, err := v.Begin(t.Context(), From{Disk: format.ID{9}, Size: 3 << 20, Base: &base})
			if err != nil {
				t.Fatal(err)
			}
			w.check = 0
			if _, err := w.Put(1<<20, noise(2, 1<<20)); err != nil {
				t.Fatal(err)
			}
			if err := w.packs.flush(); err != nil {
				t.Fatal(err)
			}
			if c.forget {
				if err := other.Forget(t.Context(), base.Name); err != nil {
					t.Fatal(err)
				}
			}
			for range c.prunes {
				world.Pass(c.passes)
				if _, err := other.Prune(t.Context(), PruneOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			p, err := w.Commit(format.Point{Moment: time.Now()})
			if err := w.Close(); err != nil {
				t.Error(err)
			}
			if errors.Is(err, ErrOvertaken) != c.refused || err != nil && !c.refused {
				t.Fatalf("%v", err)
			}
			if err == nil && !bytes.Equal(at(t, other, p, 1<<20, 1<<20), noise(2, 1<<20)) {
				t.Error("it has other bytes")
			}
			if sum, err := other.Verify(t.Context(), VerifyOptions{Damage: func(d Damage) { t.Errorf("%+v", d) }}); err != nil {
				t.Errorf("%+v, %v", sum, err)
			}
		})
	}
}

func TestPruneAtOnceIsRefusedWhileAnybodyIsAtWork(t *testing.T) {
	s, _ := folder(t)
	v := open(t, s, Options{})
	w, err := v.Begin(t.Context(), From{Disk: format.ID{9}, Size: 10})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Prune(t.Context(), PruneOptions{Now: true}); !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Prune(t.Context(), PruneOptions{Now: true}); err != nil {
		t.Error(err)
	}
	l, err := v.takeLease(t.Context(), pruneNow)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Begin(t.Context(), From{Disk: format.ID{9}, Size: 10}); !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
	if err := l.end(); err != nil {
		t.Error(err)
	}
}

func TestADryRunChangesNothing(t *testing.T) {
	s, _ := folder(t)
	v := open(t, s, Options{})
	p := point(t, v, From{Size: 1 << 20}, map[int64][]byte{0: noise(1, 1<<20)})
	if err := v.Forget(t.Context(), p.Name); err != nil {
		t.Fatal(err)
	}
	names := func() (all []string) {
		err := s.List(t.Context(), "", func(i store.Info) error {
			all = append(all, i.Name)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	before := names()
	would, err := v.Prune(t.Context(), PruneOptions{DryRun: true, Now: true})
	if err != nil || would.Removed != 1 || would.Freed == 0 {
		t.Errorf("%+v, %v", would, err)
	}
	if after := names(); !slices.Equal(before, after) {
		t.Errorf("%v became %v", before, after)
	}
	if did, err := v.Prune(t.Context(), PruneOptions{Now: true}); err != nil || did != would {
		t.Errorf("%+v, %v; the dry run said %+v", did, err, would)
	}
}

// A cache that was damaged, or is of another vault, is made anew.
func TestTheCacheCanBeAnything(t *testing.T) {
	s, _ := folder(t)
	cache := t.TempDir()
	v := open(t, s, Options{Cache: cache})
	content := noise(1, 1<<20)
	point(t, v, From{Size: 1 << 20}, map[int64][]byte{0: content})
	path := filepath.Join(cache, v.ID().String()+".index")
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	for i, bad := range [][]byte{nil, []byte("x"), noise(1, 100_000)} {
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		v, err := Open(t.Context(), s, Options{Cache: cache})
		if err != nil {
			t.Fatalf("%d: %v", i, err)
		}
		if p := point(t, v, From{Size: 1 << 20}, map[int64][]byte{0: content}); p.Stored > 10_000 {
			t.Errorf("%d: %d bytes stored of what is there", i, p.Stored)
		}
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Several processes at once have an index each, which the next ones use again; who has to make one says so.
func TestEachOfSeveralProcessesHasACache(t *testing.T) {
	s, _ := folder(t)
	cache := t.TempDir()
	v := open(t, s, Options{Cache: cache})
	point(t, v, From{Size: 1 << 20}, map[int64][]byte{0: noise(1, 1<<20)})
	for round := range 2 {
		var others []*Vault
		for i := range indexFiles {
			said := ""
			v, err := Open(t.Context(), s, Options{Cache: cache, Note: func(text string) { said += text }})
			if err != nil {
				t.Fatal(err)
			}
			others = append(others, v)
			if shared := v.Cache() == cache; shared != (i < indexFiles-1) {
				t.Errorf("%d: its cache is in %s", i, v.Cache())
			}
			if quiet := round == 1 && i < indexFiles-1; (said == "") != quiet {
				t.Errorf("round %d, process %d: it said %q", round, i, said)
			}
			before, err := v.index.packs()
			if err != nil {
				t.Fatal(err)
			}
			if known := len(before) > 0; known != (round == 1 && i < indexFiles-1) {
				t.Errorf("round %d, process %d: it knows %d packs", round, i, len(before))
			}
			if p := point(t, v, From{Size: 1 << 20}, map[int64][]byte{0: noise(1, 1<<20)}); p.Stored > 10_000 {
				t.Errorf("%d bytes stored of what is there", p.Stored)
			}
		}
		for _, v := range others {
			if err := v.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// Whichever page of the cache has rotted, it serves, or an error says to remove it.
func TestACacheThatRotsPanicsNowhere(t *testing.T) {
	s, _ := folder(t)
	cache := t.TempDir()
	v := open(t, s, Options{Cache: cache})
	content := noise(1, 8<<20)
	base := point(t, v, From{Size: 8 << 20}, map[int64][]byte{0: content})
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cache, v.ID().String()+".index")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for page := 2; page < len(good)/4096; page++ {
		bad := bytes.Clone(good)
		for i := range 64 {
			bad[page*4096+i] ^= 0x55
		}
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		v, err := Open(t.Context(), s, Options{Cache: cache})
		if err == nil {
			var w *Writer
			if w, err = v.Begin(t.Context(), From{Size: 8 << 20, Disk: format.ID{9}, Base: &base}); err == nil {
				_, err = w.Put(0, content)
				err = errors.Join(err, w.Close())
			}
			err = errors.Join(err, v.Close())
		}
		if err != nil {
			refused++
			if !strings.Contains(err.Error(), "remove") {
				t.Errorf("page %d: %v", page, err)
			}
		}
	}
	t.Logf("%d pages, %d refused", len(good)/4096, refused)
}

func TestDisksHaveNames(t *testing.T) {
	s, _ := folder(t)
	v := open(t, s, Options{})
	var ids []format.ID
	for _, name := range []string{"web1", "db1", "web1"} {
		d, err := v.AddDisk(t.Context(), format.Disk{Name: name, Host: "host"})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, d.ID)
	}
	all, err := v.Disks(t.Context())
	if err != nil || len(all) != 2 || all[0].Name != "db1" || ids[0] != ids[2] || all[1].ID != ids[0] {
		t.Errorf("%v, %+v, %v", ids, all, err)
	}
}

func TestWhatCannotBeWrittenIsRefused(t *testing.T) {
	s, _ := folder(t)
	v := open(t, s, Options{})
	w, err := v.Begin(t.Context(), From{Disk: format.ID{9}, Size: 1000})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	_, before := w.Put(-1, make([]byte, 1))
	_, behind := w.Put(999, make([]byte, 2))
	for _, err := range []error{before, behind, w.Zero(extent.Extent{Off: 0, Len: 1001}), w.Copy(bytes.NewReader(nil), extent.NewSet(extent.Extent{Len: 1}))} {
		if err == nil {
			t.Error("accepted")
		}
	}
	if _, err := v.Prune(t.Context(), PruneOptions{Grace: time.Minute}); err == nil {
		t.Error("a grace time of a minute")
	}
}

// A store that replaces objects cannot hold a vault.
func TestAStoreThatReplacesIsRefused(t *testing.T) {
	if err := Init(t.Context(), replacing{root: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "replaces") {
		t.Error(err)
	}
}

// replacing is a store that replaces what exists.
type replacing struct {
	store.Store
	root string
}

func (r replacing) path(name string) string { return filepath.Join(r.root, filepath.Base(name)) }

func (r replacing) Put(_ context.Context, name string, data []byte) error {
	return os.WriteFile(r.path(name), data, 0o600)
}

func (r replacing) Get(_ context.Context, name string, _, _ int64, _ []byte) ([]byte, error) {
	b, err := os.ReadFile(r.path(name))
	if err != nil {
		err = fmt.Errorf("%w: %w", store.ErrNotExist, err)
	}
	return b, err
}

func (r replacing) List(context.Context, string, func(store.Info) error) error { return nil }
func (r replacing) Remove(_ context.Context, name string) error                { return os.Remove(r.path(name)) }
func (r replacing) String() string                                             { return r.root }
