package vault

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"tidemark/extent"
	format "tidemark/format/vault"
)

// scan writes a point of all of next, as when nobody can tell what changed.
func scan(t *testing.T, v *Vault, base *Point, next []byte) Point {
	t.Helper()
	w, err := v.Begin(t.Context(), From{Disk: format.ID{9}, Size: int64(len(next)), Base: base})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Copy(bytes.NewReader(next), extent.NewSet(extent.Extent{Len: int64(len(next))})); err != nil {
		t.Fatal(err)
	}
	p, err := w.Commit(format.Point{Moment: time.Now()})
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	if got := at(t, v, p, 0, len(next)); !bytes.Equal(got, next) {
		t.Error("the point has other bytes than were put")
	}
	return p
}

// blocks changes n blocks of 4 KiB at random, and returns where.
func blocks(rng *rand.Rand, b []byte, n int) extent.Set {
	var all []extent.Extent
	for i, block := range rng.Perm(len(b) / blockSize)[:n] {
		copy(b[block*blockSize:], noise(byte(i), blockSize))
		all = append(all, extent.Extent{Off: int64(block) * blockSize, Len: blockSize})
	}
	return extent.NewSet(all...)
}

func TestAScanStoresWhatDiffers(t *testing.T) {
	const size, changes = 40<<20 + 3000, 100
	s, _ := folder(t)
	v := open(t, s, Options{})
	rng := rand.New(rand.NewPCG(1, 2))
	content := noise(1, size)
	p := scan(t, v, nil, content)
	for range 2 { // also where the map has runs
		blocks(rng, content, changes)
		p = scan(t, v, &p, content)
		if most := int64(changes * blockSize * 5 / 4); p.Stored > most {
			t.Errorf("%d bytes were stored, want at most %d", p.Stored, most)
		}
	}
	if p = scan(t, v, &p, content); p.Stored != 0 {
		t.Errorf("nothing changed, and %d bytes were stored", p.Stored)
	}
	if sum, err := v.Verify(t.Context(), VerifyOptions{}); err != nil || sum.Damages > 0 {
		t.Error(sum, err)
	}
}

func TestALaterPutOfWhatTheBaseHasHolds(t *testing.T) {
	s, _ := folder(t)
	v := open(t, s, Options{})
	old := noise(1, 1<<20)
	p := point(t, v, From{Size: 1 << 20}, map[int64][]byte{0: old})
	p = point(t, v, From{Size: 1 << 20, Base: &p}, map[int64][]byte{4096: noise(2, 4096)}) // no whole chunk any more
	now := at(t, v, p, 0, format.ChunkSize)
	w, err := v.Begin(t.Context(), From{Disk: format.ID{9}, Size: 1 << 20, Base: &p})
	if err != nil {
		t.Fatal(err)
	}
	other := bytes.Clone(now)
	copy(other[8192:], noise(3, 4096))
	for _, b := range [][]byte{other, now} {
		if _, err := w.Put(0, b); err != nil {
			t.Fatal(err)
		}
	}
	q, err := w.Commit(format.Point{Moment: time.Now()})
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(at(t, v, q, 0, format.ChunkSize), now) {
		t.Error("what was put last is not what the point has")
	}
}

func TestACopyThatWasStoppedSaysSo(t *testing.T) {
	s, _ := folder(t)
	ctx, stop := context.WithCancel(t.Context())
	w, err := open(t, s, Options{}).Begin(ctx, From{Size: 1 << 20, Disk: format.ID{1}})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	stop()
	if err := w.Copy(bytes.NewReader(make([]byte, 1<<20)), extent.NewSet(extent.Extent{Len: 1 << 20})); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
