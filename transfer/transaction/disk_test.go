package transaction_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/linux/mounts/mountstest"
	"tidemark/transfer/transaction"
)

// filesystems are folders on filesystems of several kinds, by name. "coarse" has times in
// whole seconds.
func filesystems(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		disk := mountstest.Disk(t, 400<<20)
		mountstest.Mkfs(t, kind, disk)
		all[kind] = mountstest.Mount(t, disk)
	}
	disk := mountstest.Disk(t, 64<<20)
	mountstest.Run(t, "mkfs.ext4", "-q", "-I", "128", disk)
	all["coarse"] = mountstest.Mount(t, disk)
	return all
}

// image opens an image with content, and the folder beside it.
func image(t *testing.T, at string, content []byte) (transaction.Disk, *transaction.Dir) {
	t.Helper()
	path := filepath.Join(at, "image")
	err := os.WriteFile(path, content, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	d, err := block.Open(path, block.Options{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	dir, err := transaction.OpenDir(path+".tidemark", true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(d.Close(), dir.Close(), os.Remove(path), os.RemoveAll(path+".tidemark")); err != nil {
			t.Error(err)
		}
	})
	return transaction.Disk{Device: d}, dir
}

func TestAnImageOnEveryFilesystemBecomesNew(t *testing.T) {
	for name, at := range filesystems(t) {
		t.Run(name+" shares blocks", func(t *testing.T) {
			disk, dir := image(t, at, make([]byte, 1<<16))
			f, err := dir.Open("journal", true)
			if err == nil {
				_, err = f.WriteAt(make([]byte, 1<<16), 0)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			can := name == "xfs" || name == "btrfs"
			if disk.Clone(f, 8192, extent.Extent{Off: 4096, Len: 4096}) != can {
				t.Errorf("it can, or cannot, though it should: %v", can)
			}
		})
		for _, unit := range []int{512, 4096, 128 << 10} {
			t.Run(name, func(t *testing.T) {
				p := newPlan(rand.New(rand.NewPCG(1, 2)), 8<<20, unit)
				disk, dir := image(t, at, p.old)
				steps := owned()
				trusted := false
				steps.Synced = func(s transaction.Stamp) error { trusted = s.Telling(); return nil }
				if err := p.run(disk, dir, steps); err != nil {
					t.Fatal(err)
				}
				got, err := os.ReadFile(disk.Path())
				if err != nil || !bytes.Equal(got, p.new) || !trusted {
					t.Errorf("unit %d: %v, trusted %v, and the content is the new one: %v", unit, err, trusted, bytes.Equal(got, p.new))
				}
			})
		}
	}
}

// foreign are ways to change an image behind its owner's back.
func foreign() map[string]func(path string, mapped []byte) error {
	rewrite := func(path string) error {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt([]byte("graffiti"), 4096)
		return errors.Join(err, f.Close())
	}
	// back sets the time of modification back, as touch -r and rsync -t do.
	back := func(path string, f func() error) error {
		was, err := os.Stat(path)
		if err != nil {
			return err
		}
		return errors.Join(f(), os.Chtimes(path, time.Time{}, was.ModTime()))
	}
	return map[string]func(path string, mapped []byte) error{
		"a write": func(path string, _ []byte) error { return rewrite(path) },
		"a write with the time set back": func(path string, _ []byte) error {
			return back(path, func() error { return rewrite(path) })
		},
		"a write through a mapping": func(_ string, mapped []byte) error { mapped[0]++; return nil },
		"a hole": func(path string, _ []byte) error {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			return errors.Join(unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096), f.Close())
		},
		"a copy with the same time in its place": func(path string, _ []byte) error {
			was, err := os.Stat(path)
			if err != nil {
				return err
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			other := path + ".other"
			return errors.Join(os.WriteFile(other, b, 0o600), os.Chtimes(other, time.Time{}, was.ModTime()), os.Rename(other, path))
		},
	}
}

// A stamp that is trusted shows whatever happens right after it was taken.
func TestEveryForeignWriteShows(t *testing.T) {
	for name, at := range filesystems(t) {
		for how, change := range foreign() {
			t.Run(name+"/"+how, func(t *testing.T) { showsAt(t, at, change) })
		}
	}
}

func showsAt(t *testing.T, at string, change func(path string, mapped []byte) error) {
	disk, dir := image(t, at, make([]byte, 1<<16))
	mapped, err := unix.Mmap(int(disk.File().Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mapped)
	mapped[1]++ // before our last sync: what comes after that shows
	if err := disk.Sync(); err != nil {
		t.Fatal(err)
	}
	was, trusted, err := transaction.Look(t.Context(), disk, dir)
	if err != nil || !trusted {
		t.Fatalf("trusted %v, %v", trusted, err)
	}
	if now, _ := disk.Stamp(); was.Differs(now) != "" {
		t.Errorf("without a write: %s", was.Differs(now))
	}
	if err := change(disk.Path(), mapped); err != nil {
		t.Fatal(err)
	}
	again, err := block.Open(disk.Path(), block.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if now, err := (transaction.Disk{Device: again}).Stamp(); err != nil || was.Differs(now) == "" {
		t.Errorf("not noticed: %+v, then %+v, %v", was, now, err)
	}
}

// What an older tidemark wrote of an image is compared as far as it goes, and an image
// whose time of modification is zero is no device.
func TestOlderStampsAndZeroTimes(t *testing.T) {
	disk, _ := image(t, t.TempDir(), make([]byte, 1<<16))
	now, err := disk.Stamp()
	if err != nil {
		t.Fatal(err)
	}
	old := transaction.Stamp{Size: now.Size, MTime: now.MTime}
	if why := old.Differs(now); why != "" {
		t.Errorf("an old stamp: %s", why)
	}
	old.MTime++
	if old.Differs(now) == "" {
		t.Error("an old stamp with another time is taken for the same")
	}
	if err := os.Chtimes(disk.Path(), time.Unix(0, 0), time.Unix(0, 0)); err != nil {
		t.Fatal(err)
	}
	if s, err := disk.Stamp(); err != nil || s.Kind != transaction.Image || !s.Telling() || s.MTime != 0 {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestAFolderIsForOneProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b", "c")
	if _, err := transaction.OpenDir(path, false); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a folder that is not there: %v", err)
	}
	dir, err := transaction.OpenDir(path, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := transaction.OpenDir(path, true); !errors.Is(err, transaction.ErrBusy) {
		t.Errorf("%v, want ErrBusy", err)
	}
	if err := dir.Close(); err != nil {
		t.Fatal(err)
	}
}

// A backup disk that is mounted read-only is read all the same.
func TestAFolderOnAReadOnlyFilesystemCanBeRead(t *testing.T) {
	dir := t.TempDir()
	mountstest.Run(t, "mount", "-t", "tmpfs", "tidemark-test", dir)
	t.Cleanup(func() { mountstest.Unmount(t, dir) })
	folders := []string{filepath.Join(dir, "locked"), filepath.Join(dir, "bare")}
	for _, path := range folders {
		if err := errors.Join(os.Mkdir(path, 0o700), os.WriteFile(filepath.Join(path, "state"), []byte("known"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(folders[0], transaction.LockFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mountstest.Run(t, "mount", "-o", "remount,ro", dir)
	for _, path := range folders {
		folder, err := transaction.OpenDir(path, false)
		if err != nil {
			t.Fatal(err)
		}
		f, err := folder.Open("state", false)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 5)
		if _, err := f.ReadAt(got, 0); err != nil || string(got) != "known" {
			t.Errorf("%s: %q, %v", path, got, err)
		}
		if _, err := f.WriteAt(got, 0); err == nil {
			t.Errorf("%s: written", path)
		}
		if err := errors.Join(f.Close(), folder.Close()); err != nil {
			t.Error(err)
		}
	}
}
