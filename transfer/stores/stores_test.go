package stores_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"tidemark/format/snapstore"
	"tidemark/transfer/inuse"
	"tidemark/transfer/stores"
	"tidemark/transfer/target"
)

var ctx = context.Background()

// theCase is a store that a kernel made, unpacked.
type theCase struct{ store, origin, expected, meta string }

// cases unpacks those of testdata, and of a folder shared/cases/snapstore above the module.
func cases(t *testing.T, each func(t *testing.T, c theCase)) {
	t.Helper()
	dirs := []string{"testdata/cases"}
	for up := ".."; len(up) < 30; up += "/.." {
		if shared := filepath.Join(up, "shared", "cases", "snapstore"); exists(shared) {
			dirs = append(dirs, shared)
			break
		}
	}
	seen := 0
	for _, dir := range dirs {
		metas, err := filepath.Glob(filepath.Join(dir, "*", "meta.json"))
		if err != nil {
			t.Fatal(err)
		}
		for _, meta := range metas {
			seen++
			t.Run(filepath.Base(filepath.Dir(meta)), func(t *testing.T) {
				each(t, theCase{unpacked(t, meta, "cow"), unpacked(t, meta, "origin"), unpacked(t, meta, "expected"), meta})
			})
		}
	}
	if seen == 0 {
		t.Fatal("no cases")
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// unpacked returns the path of an image beside meta, "" where there is none.
func unpacked(t *testing.T, meta, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(filepath.Dir(meta), name+".img.zst"))
	if errors.Is(err, os.ErrNotExist) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	d, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if b, err = d.DecodeAll(b, nil); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name+".img")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func open(t *testing.T, path string) *stores.Store {
	t.Helper()
	s, err := stores.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// What the kernel's snapshot device read as is what apply and extract make, and undo brings
// back what was before. An invalid store changes nothing.
func TestTheKernelsStoresGiveWhatItsDevicesRead(t *testing.T) {
	cases(t, func(t *testing.T, c theCase) {
		var meta struct{ Expect string }
		if err := json.Unmarshal(read(t, c.meta), &meta); err != nil {
			t.Fatal(err)
		}
		s, before, store := open(t, c.store), read(t, c.origin), read(t, c.store)
		dir := t.TempDir()
		o := stores.Options{StateDir: dir, Undo: filepath.Join(dir, "undo")}
		image := filepath.Join(dir, "image")
		if strings.HasPrefix(meta.Expect, "invalid") {
			_, err := s.Apply(ctx, c.origin, o)
			_, xerr := s.Extract(ctx, c.origin, image, o)
			if !errors.Is(err, snapstore.ErrOverflowed) || !errors.Is(xerr, snapstore.ErrOverflowed) || exists(o.Undo) || exists(image) {
				t.Errorf("apply: %v; extract: %v", err, xerr)
			}
			if !bytes.Equal(read(t, c.origin), before) {
				t.Error("the origin was written to")
			}
			return
		}
		want := read(t, c.expected)
		if _, err := s.Extract(ctx, c.origin, image, o); err != nil || !bytes.Equal(read(t, image), want) {
			t.Errorf("extract: %v", err)
		}
		planned, err := s.Plan(ctx, c.origin, o)
		if err != nil || !bytes.Equal(read(t, c.origin), before) {
			t.Errorf("plan: %v", err)
		}
		rep, err := s.Apply(ctx, c.origin, o)
		if err != nil || !bytes.Equal(read(t, c.origin), want) || rep.Bytes != planned.Bytes {
			t.Errorf("apply: %+v, planned %+v, %v", rep, planned, err)
		}
		if rep, err := s.Plan(ctx, c.origin, o); err != nil || rep.Equal != rep.Bytes {
			t.Errorf("plan afterwards: %+v, %v", rep, err)
		}
		if _, err := s.Apply(ctx, c.origin, o); !errors.Is(err, stores.ErrUndo) {
			t.Errorf("over what was kept: %v", err)
		}
		if _, err := open(t, o.Undo).Apply(ctx, c.origin, stores.Options{StateDir: dir, Journal: true}); err != nil || !bytes.Equal(read(t, c.origin), before) {
			t.Errorf("undo: %v", err)
		}
		if exists(c.origin+".tidemark") || !bytes.Equal(read(t, c.store), store) {
			t.Error("something was left beside the origin, or the store was written to")
		}
	})
}

// A flipped bit in a list, or a store that is cut off, is refused with the origin untouched, or
// makes of the origin what the list says. Bits of data, and of "old", are trusted: there is no
// checksum.
func TestADamagedStoreIsRefusedOrTheListIsFollowed(t *testing.T) {
	dir := t.TempDir()
	const chunk, origin = 512, 64 * 512
	size := snapstore.SizeFor(40, chunk)
	path, target := filepath.Join(dir, "store"), filepath.Join(dir, "origin")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w, err := snapstore.NewWriter(f, size, chunk)
	for i := range uint64(40) {
		if err == nil {
			err = w.Add(i, bytes.Repeat([]byte{byte(i + 1)}, chunk))
		}
	}
	if err == nil {
		err = w.End(f.Sync)
	}
	if err := errors.Join(err, f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
	sound, old := read(t, path), make([]byte, origin)
	try := func(b []byte, what string, at int) {
		t.Helper()
		if err := errors.Join(os.WriteFile(path, b, 0o600), os.WriteFile(target, old, 0o600)); err != nil {
			t.Fatal(err)
		}
		s, err := stores.Open(path)
		if err == nil {
			_, err = s.Apply(ctx, target, stores.Options{StateDir: dir})
			err = errors.Join(err, s.Close())
		}
		got := read(t, target)
		if err != nil && !bytes.Equal(got, old) {
			t.Fatalf("%s at %d: %v, and the origin was written to", what, at, err)
		}
		for i := 0; err == nil && i < 40; i++ {
			e := chunk + 16*i // the list of the second area has a place of its own
			if i >= 32 {
				e = chunk*34 + 16*(i-32)
			}
			to := int(b[e]) * chunk
			from := int(b[e+8]) * chunk
			if !bytes.Equal(got[to:to+chunk], b[from:from+chunk]) {
				t.Fatalf("%s at %d: exception %d was not followed", what, at, i)
			}
		}
	}
	for _, area := range []int{0, chunk, chunk * 34} {
		for at := area; at < area+16*4; at++ {
			b := bytes.Clone(sound)
			b[at] ^= 1 << (at % 8)
			try(b, "bit", at)
		}
	}
	for cut := 0; cut < len(sound); cut += 700 {
		try(sound[:cut], "cut", cut)
	}
}

func TestWhatMustNotBeWrittenToIsRefused(t *testing.T) {
	cases(t, func(t *testing.T, c theCase) {
		if !strings.HasSuffix(filepath.Dir(c.meta), "01-commit-8") {
			t.SkipNow()
		}
		s, dir := open(t, c.store), t.TempDir()
		o := stores.Options{StateDir: dir}
		before := read(t, c.origin)
		if _, err := s.Apply(ctx, c.store, o); !errors.Is(err, stores.ErrSame) {
			t.Errorf("to itself: %v", err)
		}
		small := filepath.Join(dir, "small")
		if err := os.WriteFile(small, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Apply(ctx, small, o); !errors.Is(err, snapstore.ErrDamaged) || !strings.Contains(err.Error(), "behind the end of the origin, which has 1048576 bytes") {
			t.Errorf("to an origin that is too small: %v", err)
		}
		f, err := os.OpenFile(c.origin, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Apply(ctx, c.origin, o); !errors.Is(err, inuse.ErrInUse) {
			t.Errorf("open in another program: %v", err)
		}
		f.Close()
		refused := errors.New("not now")
		o.Begin = func() error { return refused }
		if _, err := s.Apply(ctx, c.origin, o); !errors.Is(err, refused) {
			t.Error(err)
		}
		if !bytes.Equal(read(t, c.origin), before) {
			t.Error("the origin was written to")
		}
		if _, err := s.Apply(ctx, filepath.Join(dir, "missing"), o); !errors.Is(err, os.ErrNotExist) || errors.Is(err, target.ErrRefused) {
			t.Error(err)
		}
	})
}
