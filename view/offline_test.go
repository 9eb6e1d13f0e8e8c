package view_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"

	"tidemark/linux/mounts/mountstest"
	"tidemark/view"
)

func TestOfflineDeviceThatNobodyWritesToStandsStill(t *testing.T) {
	dev := mountstest.Disk(t, small)
	write(t, dev, 1<<20)
	h := hold(t, view.Offline(sources(t, dev)))
	f, err := os.Open(dev)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Read(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := h.Release(); err != nil {
		t.Error(err)
	}
	if r := h.Report(); r.Frozen != 0 || r.Filesystems != nil {
		t.Errorf("report %+v", r)
	}
}

func TestOfflineNamesWhatWasWritten(t *testing.T) {
	disk, parts := mountstest.Partitioned(t, large, 2)
	quiet := mountstest.Disk(t, small)
	h := hold(t, view.Offline(sources(t, disk, quiet)))
	write(t, parts[0], 4096)
	err := h.Release()
	wantBroken(t, err, disk, "8 sectors were written")
	if err != nil && strings.Contains(err.Error(), quiet) {
		t.Errorf("%v: names the wrong device", err)
	}
	h = hold(t, view.Offline(sources(t, parts[1])))
	write(t, parts[0], 4096)
	if err := h.Release(); err != nil {
		t.Errorf("written to the sibling: %v", err)
	}
	h = hold(t, view.Offline(sources(t, quiet)))
	mountstest.Run(t, "blkdiscard", "--length", "1M", quiet)
	wantBroken(t, h.Release(), quiet, "2048 sectors were discarded")
}

func TestOfflineSeesPageCacheOfOthersAsTheirWrite(t *testing.T) {
	dev := mountstest.Disk(t, small)
	f, err := os.OpenFile(dev, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	// What was written before is flushed by Hold, and does not count.
	h := hold(t, view.Offline(sources(t, dev)))
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := h.Release(); err != nil {
		t.Error(err)
	}
}

func TestOfflineImageTellsEveryChange(t *testing.T) {
	for name, change := range map[string]func(path string) error{
		"written to": func(p string) error {
			f, err := os.OpenFile(p, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte{1}, 4096)
			return errors.Join(err, f.Close())
		},
		"size changed": func(p string) error { return os.Truncate(p, 4096) },
		"replaced": func(p string) error {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			return errors.Join(os.WriteFile(p+".new", b, 0o600), os.Rename(p+".new", p))
		},
		"removed": os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			image := mountstest.Image(t, 1<<20)
			h := hold(t, view.Offline(sources(t, image)))
			// At once: the clock of time stamps may not have ticked in between.
			if err := change(image); err != nil {
				t.Fatal(err)
			}
			wantBroken(t, h.Release(), image, name)
		})
	}
	image := mountstest.Image(t, 1<<20)
	h := hold(t, view.Offline(sources(t, image)))
	if _, err := os.ReadFile(image); err != nil {
		t.Fatal(err)
	}
	if err := h.Release(); err != nil {
		t.Errorf("only read: %v", err)
	}
}

func TestOfflineRefusesWhatIsMountedReadWrite(t *testing.T) {
	image := mountstest.Image(t, small)
	dev := mountstest.Attach(t, image)
	mountstest.Mkfs(t, "ext4", dev)
	dir := mount(t, dev)
	for _, path := range []string{dev, image} {
		_, err := view.Offline(sources(t, path)).Take(t.Context(), anyInstant)
		if !errors.Is(err, view.ErrMounted) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: hold: %v", path, err)
		}
	}
	mountstest.Run(t, "mount", "-o", "remount,ro", dir)
	h := hold(t, view.Offline(sources(t, dev)))
	if err := h.Release(); err != nil {
		t.Errorf("mounted read-only: %v", err)
	}
	h = hold(t, view.Offline(sources(t, dev)))
	mountstest.Run(t, "mount", "-o", "remount,rw", dir)
	if err := os.WriteFile(dir+"/new", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	mountstest.Run(t, "sync", "--file-system", dir)
	wantBroken(t, h.Release(), dev)
}

func TestOfflineRefusesADeviceWhoseWritesAreNotCounted(t *testing.T) {
	dev := mountstest.Disk(t, small)
	iostats := "/sys/block/" + strings.TrimPrefix(dev, "/dev/") + "/queue/iostats"
	if err := os.WriteFile(iostats, []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	// The setting stays with the loop device when it is detached.
	t.Cleanup(func() { os.WriteFile(iostats, []byte("1"), 0) })
	if _, err := view.Offline(sources(t, dev)).Take(t.Context(), anyInstant); err == nil || !strings.Contains(err.Error(), "count") {
		t.Errorf("hold: %v", err)
	}
}

func TestChooseSaysWhatAndWhy(t *testing.T) {
	dev := mountstest.Disk(t, small)
	mountstest.Mkfs(t, "ext4", dev)
	want := func(kind, provider, words string, wrong error) {
		t.Helper()
		p, why, err := view.Choose(t.Context(), kind, sources(t, dev))
		switch {
		case wrong != nil:
			if !errors.Is(err, wrong) {
				t.Errorf("%s: %v, want %v", kind, err, wrong)
			}
		case err != nil:
			t.Errorf("%s: %v", kind, err)
		case p.Kind() != provider || !strings.Contains(why, words):
			t.Errorf("%s: %s because %q; want %s, %q", kind, p.Kind(), why, provider, words)
		}
	}
	want("auto", "offline", "no filesystem is mounted", nil)
	want("offline", "offline", "as asked", nil)
	want("freeze", "", "", view.ErrNothingToFreeze)
	dir := mount(t, dev, "-o", "ro")
	want("auto", "offline", "mounted read-only", nil)
	mountstest.Run(t, "mount", "-o", "remount,rw", dir)
	want("", "freeze", "ext4 on "+dir, nil)
	want("auto", "freeze", "ext4 on "+dir, nil)
	want("freeze", "freeze", "as asked", nil)
	want("offline", "", "", view.ErrMounted)
	if _, _, err := view.Choose(t.Context(), "snapshot", sources(t, dev)); err == nil {
		t.Error("an unknown kind was accepted")
	}
}

func TestCoveredPathsAreThoseThatWouldWaitForTheThaw(t *testing.T) {
	dev := mountstest.Disk(t, large)
	mountstest.Mkfs(t, "ext4", dev)
	outer := mount(t, dev)
	inner := mountstest.Attach(t, mountstest.ImageIn(t, outer, small))
	mountstest.Mkfs(t, "ext4", inner)
	nested := mount(t, inner)
	free := t.TempDir()
	paths := []string{outer + "/new", free + "/new", nested + "/a/b", inner, dev}
	covered, err := view.Covered(sources(t, dev).Sources, paths...)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{outer + "/new", nested + "/a/b", inner}; strings.Join(covered, "\n") != strings.Join(want, "\n") {
		t.Errorf("covered %q, want %q", covered, want)
	}
}

// wantUnseen checks that nobody calls the source offline by himself, and that who
// asks for it is told.
func wantUnseen(t *testing.T, path, dev string) {
	t.Helper()
	o := sources(t, path)
	var offline view.Provider
	synctest.Test(t, func(t *testing.T) { // the claims are waited for in the test alone
		_, _, err := view.Choose(t.Context(), "auto", o)
		if !errors.Is(err, view.ErrUnseen) || !strings.Contains(err.Error(), dev) {
			t.Errorf("auto on %s: %v", path, err)
		}
		if _, err := view.Offline(o).Take(t.Context(), anyInstant); !errors.Is(err, view.ErrUnseen) {
			t.Errorf("hold of %s: %v", path, err)
		}
		var why string
		offline, why, err = view.Choose(t.Context(), "offline", o)
		if err != nil || !strings.Contains(why, "WARNING: "+dev) {
			t.Fatalf("offline on %s: %q, %v", path, why, err)
		}
	})
	if t.Failed() {
		return
	}
	if err := hold(t, offline).Release(); err != nil {
		t.Error(err)
	}
}

func TestLazilyUnmountedFilesystemIsNotOffline(t *testing.T) {
	image := mountstest.Image(t, large)
	dev := mountstest.Attach(t, image)
	mountstest.Mkfs(t, "ext4", dev)
	dir := mount(t, dev)
	busy, err := os.Create(dir + "/busy")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Unmount(dir, unix.MNT_DETACH), busy.Sync()); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dev, image} {
		wantUnseen(t, path, dev)
	}
	if _, err := busy.WriteString("only in memory"); err != nil {
		t.Fatal(err)
	}
	if err := busy.Close(); err != nil {
		t.Fatal(err)
	}
	mountstest.Eventually(t, "the filesystem ends", func() bool {
		_, why, err := view.Choose(t.Context(), "auto", sources(t, dev))
		return err == nil && strings.Contains(why, "no filesystem is mounted")
	})
}

func TestFilesystemOfANamespaceThatNoProcessShowsIsNotOffline(t *testing.T) {
	dev := mountstest.Disk(t, large)
	mountstest.Mkfs(t, "ext4", dev)
	// A namespace is kept by a bind mount, which must not be propagated to itself.
	keep := t.TempDir()
	mountstest.Run(t, "mount", "--bind", "--make-private", keep, keep)
	t.Cleanup(func() { mountstest.Run(t, "umount", keep) })
	if err := os.WriteFile(keep+"/ns", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	mountstest.Run(t, "unshare", "--mount="+keep+"/ns", "--propagation", "private", "mount", dev, dir)
	wantUnseen(t, dev, dev)
	mountstest.Run(t, "umount", keep+"/ns")
	mountstest.Eventually(t, "the namespace ends", func() bool {
		_, _, err := view.Choose(t.Context(), "auto", sources(t, dev))
		return err == nil
	})
}

func TestRawUserBesideAMountedFilesystemIsNamed(t *testing.T) {
	disk, parts := mountstest.Partitioned(t, large, 2)
	mountstest.Mkfs(t, "ext4", parts[0])
	dir := mount(t, parts[0])
	raw, err := os.OpenFile(parts[1], os.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	o := sources(t, disk)
	synctest.Test(t, func(t *testing.T) { // the claims are waited for in the test alone
		if _, _, err := view.Choose(t.Context(), "auto", o); !errors.Is(err, view.ErrUnseen) || !strings.Contains(err.Error(), parts[1]) {
			t.Errorf("auto: %v", err)
		}
		if _, why, err := view.Choose(t.Context(), "freeze", o); err != nil || !strings.Contains(why, "WARNING: "+parts[1]) {
			t.Errorf("freeze: %q, %v", why, err)
		}
	})
	if _, why, err := view.Choose(t.Context(), "auto", sources(t, parts[0])); err != nil || !strings.Contains(why, dir) {
		t.Errorf("the partition beside it: %q, %v", why, err)
	}
}

// As where the cgroup of a container keeps devices shut. The caller who chooses the
// view has looked by other means.
func TestViewChosenByHandDoesNotNeedToClaimWhatIsOnTheSource(t *testing.T) {
	disk, parts := mountstest.Partitioned(t, large, 2)
	shut := parts[1]
	var st unix.Stat_t
	if err := unix.Stat(shut, &st); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	mountstest.MountAt(t, "none", dir, "-t", "tmpfs", "-o", "nodev")
	if err := unix.Mknod(dir+"/shut", unix.S_IFBLK|0o600, int(st.Rdev)); err != nil {
		t.Fatal(err)
	}
	mountstest.MountAt(t, dir+"/shut", shut, "--bind")
	o := sources(t, disk)
	if _, _, err := view.Choose(t.Context(), "auto", o); !errors.Is(err, unix.EACCES) {
		t.Errorf("auto: %v", err)
	}
	if _, err := view.Offline(o).Take(t.Context(), anyInstant); !errors.Is(err, unix.EACCES) {
		t.Errorf("offline without Choose: %v", err)
	}
	warned := func(kind string) {
		t.Helper()
		p, why, err := view.Choose(t.Context(), kind, o)
		if err != nil || !strings.Contains(why, "WARNING") || !strings.Contains(why, shut) {
			t.Fatalf("%s: %q, %v", kind, why, err)
		}
		if err := hold(t, p).Release(); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
	warned("offline")
	mountstest.Mkfs(t, "ext4", parts[0])
	mount(t, parts[0])
	warned("freeze")
}
