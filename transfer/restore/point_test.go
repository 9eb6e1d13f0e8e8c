package restore_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"tidemark/extent"
	format "tidemark/format/vault"
	"tidemark/transfer"
	"tidemark/transfer/restore"
	"tidemark/vault"
	"tidemark/vault/store"
)

const (
	mib       = 1 << 20
	pointSize = 170*mib + 512
)

// pointOf makes a vault with a point that has pieces at the start, in the middle and at the end.
func pointOf(t *testing.T) (restore.Point, map[int64][]byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vault")
	s, err := store.Open(t.Context(), path, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := vault.Init(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	v, err := vault.Open(t.Context(), s, vault.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	d, err := v.AddDisk(t.Context(), format.Disk{Name: "disk", Host: "elsewhere"})
	if err != nil {
		t.Fatal(err)
	}
	w, err := v.Begin(t.Context(), vault.From{Disk: d.ID, Size: pointSize})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	held := map[int64][]byte{}
	for _, off := range []int64{4096, 132 * mib, 150*mib + 4096, pointSize - 512} {
		held[off] = make([]byte, min(mib, pointSize-off))
		rand.NewChaCha8([32]byte{byte(off >> 20)}).Read(held[off])
		if _, err := w.Put(off, held[off]); err != nil {
			t.Fatal(err)
		}
	}
	p, err := w.Commit(format.Point{Moment: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	return restore.Point{Vault: v, Address: path, Disk: d, Point: p}, held
}

// holds fails when an image does not have size bytes, those of a point from off on.
func holds(t *testing.T, image string, held map[int64][]byte, off, size int64) {
	t.Helper()
	got, err := os.ReadFile(image)
	if err != nil || int64(len(got)) != size {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	want := make([]byte, pointSize)
	for at, b := range held {
		copy(want[at:], b)
	}
	if !bytes.Equal(got, want[off:off+size]) {
		t.Error("the image has other bytes")
	}
}

func TestAPointThatWasCutOffGoesOn(t *testing.T) {
	p, held := pointOf(t)
	image := filepath.Join(t.TempDir(), "image")
	ctx, cancel := context.WithCancel(t.Context())
	o := restore.Options{StateDir: t.TempDir(), Progress: func(e transfer.Event) {
		if e.Phase == "restore" && e.Done >= 140*mib {
			cancel()
		}
	}}
	if rep, err := restore.RestorePoint(ctx, p, image, o); !errors.Is(err, context.Canceled) {
		t.Fatalf("%+v, %v", rep, err)
	}
	if err := restore.RefuseHalf(image, o.StateDir); !errors.Is(err, restore.ErrHalf) {
		t.Errorf("it is taken for a whole one: %v", err)
	}
	o.Progress, o.Verify = nil, true
	rep, err := restore.RestorePoint(t.Context(), p, image, o)
	if err != nil || rep.Mode != restore.Resumed || rep.Outcome != "ok" {
		t.Fatalf("%+v, %v", rep, err)
	}
	holds(t, image, held, 0, pointSize)
}

func TestAPartOfAPointIsADiskOfItsOwn(t *testing.T) {
	p, held := pointOf(t)
	o := restore.Options{StateDir: t.TempDir(), Verify: true}
	for _, e := range []extent.Extent{{Off: 512, Len: 8 * mib}, {Off: 132*mib - 1024, Len: 38*mib + 1536}, {Len: pointSize}} {
		p.Range = e
		image := filepath.Join(t.TempDir(), "image")
		if rep, err := restore.RestorePoint(t.Context(), p, image, o); err != nil || rep.Size != e.Len {
			t.Fatalf("%v: %+v, %v", e, rep, err)
		}
		holds(t, image, held, e.Off, e.Len)
	}
	for _, e := range []extent.Extent{{Off: 1, Len: pointSize}, {Off: pointSize, Len: 1}, {Off: -1, Len: 2}, {Off: 1}, {Off: 1 << 62, Len: 1 << 62}} {
		p.Range = e
		image := filepath.Join(t.TempDir(), "image")
		if _, err := restore.RestorePoint(t.Context(), p, image, o); !errors.Is(err, restore.ErrRange) {
			t.Errorf("%v: %v", e, err)
		}
		if _, err := os.Stat(image); err == nil {
			t.Errorf("%v: something was written", e)
		}
	}
}

// In place only what differs is written, whatever the target is of.
func TestAPointIsBroughtInPlace(t *testing.T) {
	p, held := pointOf(t)
	image := filepath.Join(t.TempDir(), "image")
	o := restore.Options{StateDir: t.TempDir()}
	if _, err := restore.RestorePoint(t.Context(), p, image, o); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 5000, 133 * mib, pointSize - 1} {
		if _, err := f.WriteAt([]byte{0xff}, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	o.Overwrite, o.InPlace = true, true
	rep, err := restore.RestorePoint(t.Context(), p, image, o)
	if err != nil || rep.Mode != restore.InPlace || rep.Written != 3*4096+512 || rep.Journal == 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
	holds(t, image, held, 0, pointSize)
}
