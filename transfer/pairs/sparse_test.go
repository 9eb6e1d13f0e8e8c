package pairs_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/extent"
	"tidemark/track"
	"tidemark/transfer/copies"
	"tidemark/transfer/pairs"
	"tidemark/transfer/restore"
)

// readBytes counts what this process has read with system calls (proc(5), rchar).
func readBytes(t *testing.T) (n int64) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/io")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(strings.SplitN(string(text), "\n", 2)[0], "rchar: %d", &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestHolesOfImagesAreNotRead(t *testing.T) {
	const size, most = 50 << 30, 64 << 20
	dir := t.TempDir()
	src, dst, other := filepath.Join(dir, "src.img"), filepath.Join(dir, "dst.img"), filepath.Join(dir, "other.img")
	f, err := os.Create(src)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, at := range []int64{1000, size / 2, size - 10} {
		if _, err := f.WriteAt([]byte("data"), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	o := pairs.Options{StateDir: dir, Tracker: track.KindScan, View: "offline"}
	sound := func(bad extent.Set, checked int64, err error) error {
		if err == nil && (!bad.Empty() || checked != size) {
			err = fmt.Errorf("checked %d bytes, differs: %v", checked, bad)
		}
		return err
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"first copy", func() error {
			_, err := pairs.Mirror(t.Context(), []pairs.Pair{{Source: src, Target: dst}}, o)
			return err
		}},
		{"later copy", func() error {
			_, err := pairs.Mirror(t.Context(), []pairs.Pair{{Source: src, Target: dst}}, o)
			return err
		}},
		{"verify", func() error { return sound(copies.Verify(t.Context(), dst, copies.Options{StateDir: o.StateDir})) }},
		{"compare", func() error {
			return sound(copies.Compare(t.Context(), dst, src, copies.Options{StateDir: o.StateDir}))
		}},
		{"restore", func() error {
			_, err := restore.Restore(t.Context(), dst, other, restore.Options{StateDir: o.StateDir, Tracker: o.Tracker, Verify: true})
			return err
		}},
		{"compare what was restored", func() error {
			return sound(copies.Compare(t.Context(), other, src, copies.Options{StateDir: o.StateDir}))
		}},
	} {
		before := readBytes(t)
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if n := readBytes(t) - before; n > most {
			t.Errorf("%s: read %d bytes of an image of holes", step.name, n)
		}
	}
	// What stands in a hole is found all the same.
	if f, err = os.OpenFile(dst, os.O_RDWR, 0); err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("bad"), size/4); err != nil {
		t.Fatal(err)
	}
	if bad, _, err := copies.Verify(t.Context(), dst, copies.Options{StateDir: o.StateDir}); err != nil || bad.Empty() {
		t.Errorf("verify of a hole that was written to: %v, %v", bad, err)
	}
}
