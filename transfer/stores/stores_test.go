package stores_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"tidemark/format/snapstore"
	"tidemark/linux/mounts/mountstest"
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

// A random store makes of a random origin what a plain disk would be: written, read, extracted,
// applied in place and through a journal, and undone.
func TestAStoreIsAppliedAsToAPlainDisk(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 11))
		chunk := int64(512) << rng.IntN(8)
		chunks := 1 + rng.Int64N(300)
		before := random(rng, chunks*chunk-512*rng.Int64N(chunk/512)) // the last chunk is short, mostly
		want := bytes.Clone(before)
		dir := t.TempDir()
		path, target := filepath.Join(dir, "store"), filepath.Join(dir, "origin")
		write(t, target, before)
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		w, err := snapstore.NewWriter(f, snapstore.SizeFor(chunks, chunk), chunk)
		if err != nil {
			t.Fatal(err)
		}
		for _, old := range order(rng, int(chunks)) {
			data := random(rng, chunk)
			copy(want[int64(old)*chunk:], data)
			if err := w.Add(uint64(old), data); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(w.End(f.Sync), f.Truncate(snapstore.SizeFor(chunks, chunk)), f.Close()); err != nil {
			t.Fatal(err)
		}
		s, image := open(t, path), filepath.Join(dir, "image")
		sum, err := s.Sound(int64(len(before)))
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		o := stores.Options{StateDir: dir, Journal: seed%3 == 0, Undo: filepath.Join(dir, "undo")}
		if rep, err := s.Extract(ctx, target, image, o); err != nil || !bytes.Equal(read(t, image), want) || rep.Extents != sum.Extents {
			t.Fatalf("seed %d: extract: %+v, %v; want %d extents", seed, rep, err, sum.Extents)
		}
		if rep, err := s.Apply(ctx, target, o); err != nil || !bytes.Equal(read(t, target), want) || rep.Extents != sum.Extents {
			t.Fatalf("seed %d: apply: %+v, %v; want %d extents", seed, rep, err, sum.Extents)
		}
		if _, err := open(t, o.Undo).Apply(ctx, target, stores.Options{StateDir: dir}); err != nil || !bytes.Equal(read(t, target), before) {
			t.Fatalf("seed %d: undo: %v", seed, err)
		}
	}
}

// order is a part of the first n numbers, in runs of random length, shuffled.
func order(rng *rand.Rand, n int) (list []int) {
	var runs [][]int
	for at := 0; at < n; {
		run := []int{}
		for range min(1+rng.IntN(20), n-at) {
			run = append(run, at)
			at++
		}
		if rng.IntN(3) > 0 {
			runs = append(runs, run)
		}
	}
	rng.Shuffle(len(runs), func(i, j int) { runs[i], runs[j] = runs[j], runs[i] })
	return slices.Concat(runs...)
}

func random(rng *rand.Rand, n int64) []byte {
	b := make([]byte, n)
	if rng.IntN(10) > 0 { // else zeros
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
	}
	return b
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// small makes a store of one chunk, of 512 bytes of zeros, and an origin of 4096 ones.
func small(t *testing.T) (store, origin string, before []byte) {
	t.Helper()
	dir := t.TempDir()
	store, origin = filepath.Join(dir, "store"), filepath.Join(dir, "origin")
	f, err := os.Create(store)
	if err != nil {
		t.Fatal(err)
	}
	w, err := snapstore.NewWriter(f, 8192, 512)
	if err == nil {
		err = errors.Join(w.Add(1, make([]byte, 512)), w.End(f.Sync), f.Truncate(8192), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	before = bytes.Repeat([]byte{1}, 4096)
	write(t, origin, before)
	return store, origin, before
}

// A file that an apply was to keep what is overwritten in, and that was cut off meanwhile, is
// no store, and the refusal says that the origin was not written to.
func TestWhatIsLeftOfAnUndoIsTold(t *testing.T) {
	store, origin, before := small(t)
	s, o := open(t, store), stores.Options{StateDir: t.TempDir(), Undo: origin + ".undo"}
	for _, c := range []struct {
		left []byte
		want string
	}{
		{make([]byte, 8192), "nothing had been written to the origin: remove it"},
		{nil, "nothing had been written to the origin: remove it"},
		{read(t, store), "it has what to go back to: keep it"},
	} {
		write(t, o.Undo, c.left)
		if _, err := s.Apply(ctx, origin, o); !errors.Is(err, stores.ErrUndo) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
		if !bytes.Equal(read(t, o.Undo), c.left) || !bytes.Equal(read(t, origin), before) {
			t.Error("a refused apply has written")
		}
	}
}

// Chunks smaller than the sectors of a device are written through the page cache, and not past
// it: that is refused before the first byte, or what it is asked for would never end.
func TestChunksBelowTheSectorSizeAreNotWrittenDirectly(t *testing.T) {
	store, origin, before := small(t)
	dev := mountstest.Run(t, "losetup", "--find", "--show", "--sector-size", "4096", origin)
	defer mountstest.Run(t, "losetup", "--detach", dev)
	s, o := open(t, store), stores.Options{StateDir: t.TempDir(), Direct: true}
	if _, err := s.Apply(ctx, dev, o); !errors.Is(err, stores.ErrDirect) || !bytes.Equal(read(t, dev), before) {
		t.Error(err)
	}
	o.Direct = false
	want := bytes.Clone(before)
	clear(want[512:1024])
	if _, err := s.Apply(ctx, dev, o); err != nil || !bytes.Equal(read(t, dev), want) {
		t.Error(err)
	}
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
		write(t, small, nil)
		_, perr := s.Plan(ctx, small, o)
		_, aerr := s.Apply(ctx, small, o)
		_, xerr := s.Extract(ctx, small, filepath.Join(dir, "image"), o)
		if !errors.Is(perr, target.ErrRefused) || !errors.Is(aerr, target.ErrRefused) || !errors.Is(xerr, target.ErrRefused) {
			t.Errorf("to an empty origin: %v; %v; %v", perr, aerr, xerr)
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
