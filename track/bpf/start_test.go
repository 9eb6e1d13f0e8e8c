package bpf_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/track/bpf"
	"tidemark/track/history"
)

// started is bpf.Start of the device at a path. It leaves the tracking on.
func started(t *testing.T, dev string, opts bpf.Options) error {
	t.Helper()
	d, err := block.Open(dev, block.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	l, _, err := bpf.Start(t.Context(), d, opts)
	if err != nil {
		return err
	}
	return l.Close()
}

// pinned lists what is in the kernel for a run folder.
func pinned(t *testing.T, opts bpf.Options) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(opts.BPFFS, "tidemark", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// remount gives a filesystem other options.
func remount(t *testing.T, dir string, flags uintptr, options string) {
	t.Helper()
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|flags, options); err != nil {
		t.Fatalf("remount %s: %v", dir, err)
	}
}

// Whichever write to the run folder is the one that fails, nothing is left of the start,
// and another disk that is tracked does not notice.
func TestNothingIsLeftOfAStartThatFails(t *testing.T) {
	for _, c := range []struct {
		name string
		disk func(*testing.T) string
		// room lets the nth write be the first that fails.
		room func(used unix.Statfs_t, n uint64) string
	}{
		{"inodes", func(t *testing.T) string { return loopDisk(t, 16<<20) }, func(s unix.Statfs_t, n uint64) string {
			return fmt.Sprintf("nr_inodes=%d", s.Files-s.Ffree+n)
		}},
		{"bytes", func(t *testing.T) string { return zram(t, 16<<20) }, func(s unix.Statfs_t, n uint64) string {
			return fmt.Sprintf("size=%d", (s.Blocks-s.Bfree+n)*uint64(s.Bsize))
		}},
	} {
		for _, beside := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/beside another %v", c.name, beside), func(t *testing.T) {
				opts := places(t)
				opts.RunDir = tmpfs(t)
				dev, other := c.disk(t), loopDisk(t, 16<<20)
				var l *bpf.Tracker
				if beside {
					l = open(t, other, opts)
					cut(t, l)
				}
				before := pinned(t, opts)
				var used unix.Statfs_t
				if err := unix.Statfs(opts.RunDir, &used); err != nil {
					t.Fatal(err)
				}
				n := uint64(1)
				for ; ; n++ {
					remount(t, opts.RunDir, 0, c.room(used, n))
					err := started(t, dev, opts)
					if err == nil {
						break
					}
					if !errors.Is(err, history.ErrUnwritable) {
						t.Fatalf("room for %d writes: %v", n, err)
					}
					wantNothingLeft(t, dev, opts, before)
				}
				if n < 3 {
					t.Errorf("only %d starts failed", n-1)
				}
				if err := bpf.Stop(t.Context(), dev, opts); err != nil {
					t.Error(err)
				}
				if !beside {
					return
				}
				m := cut(t, l)
				write(t, other, 4096, 4096, 1)
				wantChanges(t, l, m, "", extent.Extent{Off: 4096, Len: 4096})
			})
		}
	}
}

// wantNothingLeft checks that the device is not tracked, that the kernel holds what it
// held before, and that asking tells so.
func wantNothingLeft(t *testing.T, dev string, opts bpf.Options, before []string) {
	t.Helper()
	if now := pinned(t, opts); !slices.Equal(now, before) {
		t.Fatalf("left in the kernel: %v, before there were %v", now, before)
	}
	list, err := bpf.List(t.Context(), opts)
	if err != nil || slices.ContainsFunc(list, func(s bpf.Status) bool { return s.Disk == filepath.Base(dev) }) {
		t.Fatalf("tracked: %+v, %v", list, err)
	}
	if left, err := bpf.Leftovers(t.Context(), opts); len(left) > 0 || err != nil {
		t.Fatalf("left over: %v, %v", left, err)
	}
	if err := bpf.Stop(t.Context(), dev, opts); !errors.Is(err, bpf.ErrNotTracked) {
		t.Fatalf("stop: %v", err)
	}
}

func TestNothingIsLeftOfAStartInAFolderThatCannotBeWritten(t *testing.T) {
	opts := places(t)
	opts.RunDir = tmpfs(t)
	dev := loopDisk(t, 16<<20)
	for _, folder := range []string{"new", "used before"} {
		remount(t, opts.RunDir, unix.MS_RDONLY, "")
		if err := started(t, dev, opts); !errors.Is(err, history.ErrUnwritable) {
			t.Errorf("%s: %v", folder, err)
		}
		wantNothingLeft(t, dev, opts, nil)
		remount(t, opts.RunDir, 0, "")
		if err := started(t, dev, opts); err != nil {
			t.Fatal(err)
		}
		if err := bpf.Stop(t.Context(), dev, opts); err != nil {
			t.Fatal(err)
		}
	}
	remount(t, opts.BPFFS, unix.MS_RDONLY, "")
	if err := started(t, dev, opts); err == nil {
		t.Error("programs were pinned on a read-only filesystem")
	}
	remount(t, opts.BPFFS, 0, "")
	wantNothingLeft(t, dev, opts, nil)
}

// A start that is killed cannot clean up: status tells of it, and stop removes it.
func TestWhatAKilledStartLeavesIsToldAndRemoved(t *testing.T) {
	opts := places(t)
	dev, other := loopDisk(t, 16<<20), zram(t, 16<<20)
	killed := func(opts bpf.Options) { // before it wrote the record
		t.Helper()
		if err := started(t, dev, opts); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(opts.RunDir, "track", filepath.Base(dev), "record.json")); err != nil {
			t.Fatal(err)
		}
		if left, err := bpf.Leftovers(t.Context(), opts); len(left) == 0 || err != nil {
			t.Errorf("left over: %v, %v", left, err)
		}
	}
	killed(opts)
	if err := bpf.Stop(t.Context(), dev, opts); err != nil {
		t.Error(err)
	}
	wantNothingLeft(t, dev, opts, nil)

	l := open(t, other, opts)
	m := cut(t, l)
	before := pinned(t, opts)
	killed(opts)
	if err := bpf.Stop(t.Context(), dev, opts); err != nil {
		t.Error(err)
	}
	wantNothingLeft(t, dev, opts, before)
	write(t, other, 4096, 4096, 1)
	wantChanges(t, l, m, "", extent.Extent{Off: 4096, Len: 4096})

	gone := opts // a start whose folder went as well
	gone.RunDir = t.TempDir()
	killed(gone)
	if err := os.RemoveAll(gone.RunDir); err != nil {
		t.Fatal(err)
	}
	if err := bpf.Stop(t.Context(), dev, gone); err != nil {
		t.Error(err)
	}
	wantNothingLeft(t, dev, gone, before)
}
