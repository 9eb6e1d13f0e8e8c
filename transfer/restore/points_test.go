package restore_test

import (
	"bytes"
	"crypto/sha256"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"tidemark/extent"
	format "tidemark/format/vault"
	"tidemark/transfer/restore"
	"tidemark/vault"
	"tidemark/vault/store"
)

var (
	pointSeed = flag.Uint64("point-seed", 0, "of the random points; 0: another each time")
	points    = flag.Int("points", 40, "of the disk that changes at random")
)

// drawn is a disk that changes at random, of which each state becomes a point.
type drawn struct {
	rng  *rand.Rand
	now  []byte
	disk vault.Disk
	made []vault.Point
	sums [][sha256.Size]byte
}

// next changes the disk, and returns where.
func (d *drawn) next() extent.Set {
	size := int64(len(d.now))
	if size == 0 || d.rng.IntN(20) == 0 {
		next := make([]byte, 512*(1+d.rng.IntN(3*mib/512)))
		copy(next, d.now)
		d.now, size = next, int64(len(next))
	}
	var changed extent.Set
	for range d.rng.IntN(8) {
		off := d.rng.Int64N(size)
		e := extent.Extent{Off: off, Len: min(size-off, 1+d.rng.Int64N(1<<(4+d.rng.IntN(15))))}
		piece := d.now[e.Off:e.End()]
		switch d.rng.IntN(5) {
		case 0:
			clear(piece)
		case 1:
			copy(piece, d.now[d.rng.Int64N(size):]) // what is elsewhere, too
		default:
			rand.NewChaCha8([32]byte{byte(d.rng.Uint32()), byte(d.rng.Uint32())}).Read(piece)
		}
		changed = changed.Union(extent.NewSet(e))
	}
	return changed
}

// point makes one from the newest, or from any other, or from nothing.
func (d *drawn) point(t *testing.T, v *vault.Vault) {
	t.Helper()
	changed := d.next()
	from := vault.From{Disk: d.disk.ID, Size: int64(len(d.now))}
	whole := extent.NewSet(extent.Extent{Len: from.Size})
	if n := len(d.made); n > 0 && d.rng.IntN(10) > 0 {
		from.Base = &d.made[n-1]
		if grown := from.Size - from.Base.Size; grown > 0 {
			changed = changed.Union(extent.NewSet(extent.Extent{Off: from.Base.Size, Len: grown}))
		}
	} else {
		changed = whole
	}
	w, err := v.Begin(t.Context(), from)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Copy(bytes.NewReader(d.now), changed); err != nil {
		t.Fatal(err)
	}
	p, err := w.Commit(format.Point{Moment: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	d.made, d.sums = append(d.made, p), append(d.sums, sha256.Sum256(d.now))
}

// Points of one disk that grows, shrinks and changes at random are restored in any order, to
// new images and in place over one another: each is what the disk was.
func TestPointsOfADiskThatChangesAtRandom(t *testing.T) {
	seed := *pointSeed
	if seed == 0 {
		seed = rand.Uint64N(1 << 40)
	}
	t.Logf("seed %d", seed)
	d := drawn{rng: rand.New(rand.NewPCG(seed, 1))}
	path := filepath.Join(t.TempDir(), "vault")
	s, err := store.Open(t.Context(), path, store.Options{})
	if err == nil {
		err = vault.Init(t.Context(), s)
	}
	if err != nil {
		t.Fatal(err)
	}
	v, err := vault.Open(t.Context(), s, vault.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if d.disk, err = v.AddDisk(t.Context(), format.Disk{Name: "disk", Host: "elsewhere"}); err != nil {
		t.Fatal(err)
	}
	for range *points {
		d.point(t, v)
	}
	dir, state := t.TempDir(), t.TempDir()
	over := filepath.Join(dir, "over")
	for n, i := range d.rng.Perm(*points) {
		if n == *points/2 { // half of them are enough for the other half
			for _, gone := range d.rng.Perm(*points)[:*points/4] {
				if err := v.Forget(t.Context(), d.made[gone].Name); err != nil {
					t.Fatal(err)
				}
				d.made[gone].Size = -1
			}
			if _, err := v.Prune(t.Context(), vault.PruneOptions{Now: true}); err != nil {
				t.Fatal(err)
			}
		}
		if d.made[i].Size < 0 {
			continue
		}
		o, image := restore.Options{StateDir: state}, filepath.Join(dir, "new")
		if n > 0 && d.rng.IntN(2) == 0 {
			o.InPlace, o.Overwrite, o.NoJournal, image = true, true, d.rng.IntN(2) == 0, over
		}
		p := restore.Point{Vault: v, Address: path, Disk: d.disk, Point: d.made[i]}
		if _, err := restore.RestorePoint(t.Context(), p, image, o); err != nil {
			t.Fatalf("point %d: %v", i, err)
		}
		got, err := os.ReadFile(image)
		if err != nil || sha256.Sum256(got) != d.sums[i] {
			t.Fatalf("point %d, in place %v: it has other bytes (%d, want %d), %v", i, o.InPlace, len(got), d.made[i].Size, err)
		}
		if image != over {
			if err := os.Rename(image, over); err != nil {
				t.Fatal(err)
			}
		}
	}
}
