package cowfiles_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/format/datto"
	"tidemark/transfer/cowfiles"
	"tidemark/transfer/inuse"
	"tidemark/transfer/target"
)

var ctx = context.Background()

// unpack unpacks a file of a case, or returns the path of one that is not packed.
func unpack(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name+".gz"))
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err == nil {
		b, err = io.ReadAll(z)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := errors.Join(err, os.WriteFile(path, b, 0o600)); err != nil {
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

// world is a chain of two snapshots: the files to merge, and the options to do it with.
type world struct {
	base, cow, snapshot string
	o                   cowfiles.Options
}

func load(t *testing.T, dir string) world {
	t.Helper()
	w := world{base: unpack(t, dir, "base.img"), cow: unpack(t, dir, "cow.bin"), snapshot: unpack(t, dir, "snap.img")}
	f, err := cowfiles.Open(w.cow)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// What the driver says of the snapshot: the state is not in all cases.
	answer := strings.NewReplacer("UUID", f.Header().UUID.String(), "SEQ", string(rune('0'+f.Header().Sequence+1))).Replace(
		`{"version":"0.12.1","devices":[{"minor":3,"uuid":"UUID","seq_id":SEQ,"state":3}]}`)
	info := filepath.Join(t.TempDir(), "info")
	if err := os.WriteFile(info, []byte(answer), 0o600); err != nil {
		t.Fatal(err)
	}
	w.o = cowfiles.Options{StateDir: t.TempDir(), Info: info, Minor: -1}
	return w
}

func (w world) merge() (cowfiles.Report, error) {
	return cowfiles.Merge(ctx, w.snapshot, w.cow, w.base, w.o)
}

// What update-img makes is what Merge makes, but for the short last block, which that loses.
func TestMergesAreThoseOfUpdateImg(t *testing.T) {
	dirs, err := filepath.Glob("testdata/cases/*/merged.img.gz")
	for up := ".."; err == nil && len(up) < 30; up += "/.." {
		shared, gerr := filepath.Glob(filepath.Join(up, "shared/cases/datto/*/merged.img.gz"))
		if err = gerr; len(shared) > 0 {
			dirs = append(dirs, shared...)
			break
		}
	}
	if err != nil || len(dirs) == 0 {
		t.Fatal("no cases", err)
	}
	for _, merged := range dirs {
		dir := filepath.Dir(merged)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			w := load(t, dir)
			before, want := read(t, w.base), read(t, unpack(t, dir, "merged.img"))
			tail := len(want) / datto.BlockSize * datto.BlockSize
			copy(want[tail:], read(t, w.snapshot)[tail:])
			w.o.DryRun = true
			plan, err := w.merge()
			if err != nil || !bytes.Equal(read(t, w.base), before) {
				t.Errorf("dry run: %v", err)
			}
			w.o.DryRun = false
			rep, err := w.merge()
			if err != nil || rep.Bytes != plan.Bytes || rep.Blocks != plan.Blocks || !bytes.Equal(read(t, w.base), want) {
				t.Errorf("%+v, planned %+v, %v", rep, plan, err)
			}
			if rep, err := w.merge(); err != nil || !bytes.Equal(read(t, w.base), want) {
				t.Errorf("merged again: %+v, %v", rep, err)
			}
			if _, err := os.Stat(w.base + target.FolderEnd); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("something is left beside the image: %v", err)
			}
		})
	}
}

// What does not belong together is refused, and the image is what it was.
func TestWhatDoesNotBelongTogetherIsRefused(t *testing.T) {
	const dir = "testdata/cases/ext4-16m-reboot"
	answers := func(name string) func(t *testing.T, w *world) {
		return func(_ *testing.T, w *world) { w.o.Info = filepath.Join(dir, name) }
	}
	change := func(at int64, b byte, of func(w *world) string) func(t *testing.T, w *world) {
		return func(t *testing.T, w *world) {
			f, err := os.OpenFile(of(w), os.O_RDWR, 0)
			if err == nil {
				_, err = f.WriteAt([]byte{b}, at)
			}
			if err := errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
	cow := func(w *world) string { return w.cow }
	for name, c := range map[string]struct {
		is     error
		change func(t *testing.T, w *world)
	}{
		"a snapshot that is none yet": {datto.ErrOther, answers("info-mounted.json")},
		"unverified":                  {datto.ErrOther, answers("info-unverified.json")},
		"another chain":               {datto.ErrOther, change(40, 1, cow)},
		"another place in it":         {datto.ErrOther, change(24, 2, cow)},
		"not closed":                  {datto.ErrNotClean, change(4, 2, cow)},
		"damaged":                     {datto.ErrDamaged, change(datto.BlockSize, 0, cow)},
		"no driver":                   {cowfiles.ErrNoDriver, func(_ *testing.T, w *world) { w.o.Info = "" }},
		"an image of another size": {cowfiles.ErrWrongImage, func(t *testing.T, w *world) {
			if err := os.Truncate(w.base, 15<<20); err != nil {
				t.Fatal(err)
			}
		}},
		"another image": {cowfiles.ErrWrongImage, func(t *testing.T, w *world) {
			if err := os.WriteFile(w.base, bytes.Repeat([]byte("another "), 2<<20), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		"the snapshot as image": {target.ErrRefused, func(_ *testing.T, w *world) { w.base = w.snapshot }},
		"an image in use": {inuse.ErrInUse, func(t *testing.T, w *world) {
			f, err := os.OpenFile(w.base, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
		}},
		"a snapshot that changes": {inuse.ErrInUse, func(t *testing.T, w *world) {
			f, err := os.OpenFile(w.snapshot, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := load(t, dir)
			c.change(t, &w)
			before := read(t, w.base)
			for range 2 {
				if _, err := w.merge(); !errors.Is(err, c.is) || !bytes.Equal(read(t, w.base), before) {
					t.Errorf("%v, want %v", err, c.is)
				}
				w.o.DryRun = true
			}
		})
	}
}

// The snapshot is what the device holds with what was kept laid over it. It differs in the COW
// file's own blocks, and in one that the driver lost.
func TestExtractLaysWhatWasKeptOverTheDevice(t *testing.T) {
	const dir = "testdata/cases/ext4-24m-snapshot-mode"
	cow, device := unpack(t, dir, "cow.bin"), unpack(t, dir, "device.img")
	want := read(t, unpack(t, dir, "snap.img"))
	image := filepath.Join(t.TempDir(), "image")
	if _, err := cowfiles.Extract(ctx, cow, device, image, cowfiles.Options{}); err != nil {
		t.Fatal(err)
	}
	got := read(t, image)
	if len(got) != len(want) {
		t.Fatalf("%d bytes, want %d", len(got), len(want))
	}
	for n := 0; n < len(got)/datto.BlockSize; n++ {
		at := n * datto.BlockSize
		if !bytes.Equal(got[at:at+datto.BlockSize], want[at:at+datto.BlockSize]) && n != 2104 && (n < 376 || n > 1399) {
			t.Errorf("block %d is another", n)
		}
	}
	if _, err := cowfiles.Extract(ctx, unpack(t, "testdata/cases/ext4-16m-reboot", "cow.bin"), device, image+"2", cowfiles.Options{}); !errors.Is(err, datto.ErrNoData) {
		t.Error(err)
	}
}
