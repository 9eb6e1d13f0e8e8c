package view_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/linux/fsfreeze"
	"tidemark/linux/mounts/mountstest"
	"tidemark/linux/reexec"
	"tidemark/view"
)

func TestMain(m *testing.M) {
	reexec.Main(fsfreeze.Watchdog)
	os.Exit(m.Run())
}

const (
	small = 64 << 20
	large = 512 << 20
	// Bounds on waiting for a write: one that must not come through, and one that
	// must.
	blockedFor = 150 * time.Millisecond
	thawedBy   = 15 * time.Second
)

// mounted returns a fresh disk with a filesystem, and where it is mounted.
func mounted(t *testing.T, kind string) (dev, dir string) {
	t.Helper()
	size := int64(small)
	if kind != "ext4" {
		size = large
	}
	dev = mountstest.Disk(t, size)
	mountstest.Mkfs(t, kind, dev)
	return dev, mount(t, dev)
}

func mount(t *testing.T, dev string, options ...string) string {
	t.Helper()
	dir := mountstest.Mount(t, dev, options...)
	mountstest.ThawAtEnd(t, dir)
	return dir
}

// taken is a view with what Close reports.
type taken struct {
	view.View
	report view.Report
}

func (v *taken) Release() error {
	var err error
	v.report, err = v.Close()
	return err
}

func (v *taken) Report() view.Report { return v.report }

// anyInstant is for views of which the instant does not matter.
func anyInstant(context.Context) error { return nil }

func hold(t *testing.T, p view.Provider) *taken {
	t.Helper()
	v, err := p.Take(t.Context(), anyInstant)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return &taken{View: v}
}

// sources opens the sources at paths.
func sources(t *testing.T, paths ...string) view.Options {
	t.Helper()
	o := view.Options{MaxFreeze: time.Minute}
	for _, path := range paths {
		d, err := block.Open(path, block.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		o.Sources = append(o.Sources, d)
	}
	return o
}

func wantFrozen(t *testing.T, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		if mountstest.Writable(dir, blockedFor) {
			t.Errorf("%s could be written to", dir)
		}
	}
}

func wantThawed(t *testing.T, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		if !mountstest.Writable(dir, thawedBy) {
			t.Fatalf("%s is still frozen", dir)
		}
	}
}

func wantBroken(t *testing.T, err error, words ...string) {
	t.Helper()
	if !errors.Is(err, view.ErrBroken) {
		t.Errorf("release: %v, want it broken", err)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("release: %v, want it to say %q", err, w)
		}
	}
}

func TestFreezeStopsAllSourcesAtOnce(t *testing.T) {
	extDev, ext := mounted(t, "ext4")
	xfsDev, xfs := mounted(t, "xfs")
	btrfsDev, btrfs := mounted(t, "btrfs")
	dirs := []string{ext, xfs, btrfs}
	before := time.Now()
	h := hold(t, view.Freeze(sources(t, extDev, xfsDev, btrfsDev)))
	if s := h.Since(); s.Before(before) || s.After(time.Now()) {
		t.Errorf("since %v, want a moment after %v", s, before)
	}
	wantFrozen(t, dirs...)
	if err := h.Release(); err != nil {
		t.Fatal(err)
	}
	wantThawed(t, dirs...)
	r := h.Report()
	if len(r.Filesystems) != 3 || r.Frozen < blockedFor || r.Frozen > time.Since(before) || r.Passed != nil || r.Swaps != nil {
		t.Errorf("report %+v", r)
	}
	if err := h.Release(); err != nil {
		t.Errorf("released again: %v", err)
	}
}

func TestFreezeOfAPartitionLeavesItsSiblingAlone(t *testing.T) {
	disk, parts := mountstest.Partitioned(t, large, 2)
	mountstest.Mkfs(t, "ext4", parts[0])
	mountstest.Mkfs(t, "ext4", parts[1])
	a, b := mount(t, parts[0]), mount(t, parts[1])
	h := hold(t, view.Freeze(sources(t, parts[0])))
	wantFrozen(t, a)
	wantThawed(t, b)
	if err := h.Release(); err != nil {
		t.Error(err)
	}
	h = hold(t, view.Freeze(sources(t, disk)))
	wantFrozen(t, a, b)
	if err := h.Release(); err != nil {
		t.Error(err)
	}
	wantThawed(t, a, b)
}

func TestFreezeOfNestedFilesystemsDoesNotWaitForItself(t *testing.T) {
	dev := mountstest.Disk(t, large)
	mountstest.Mkfs(t, "ext4", dev)
	outer := mount(t, dev)
	inner := mountstest.Attach(t, mountstest.ImageIn(t, outer, small))
	mountstest.Mkfs(t, "ext4", inner)
	nested := mount(t, inner)
	for range 5 {
		if err := os.WriteFile(nested+"/data", make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		h := hold(t, view.Freeze(sources(t, dev)))
		wantFrozen(t, nested, outer)
		if err := h.Release(); err != nil {
			t.Fatal(err)
		}
		wantThawed(t, nested, outer)
	}
}

func TestFreezeIsBrokenWhenTheTimeIsUp(t *testing.T) {
	dev, dir := mounted(t, "ext4")
	o := sources(t, dev)
	o.MaxFreeze = time.Second
	h := hold(t, view.Freeze(o))
	select {
	case <-h.Broken():
	case <-time.After(thawedBy):
		t.Fatal("nobody said that the time was up")
	}
	wantThawed(t, dir)
	err := h.Release()
	wantBroken(t, err, "the time was up")
	if !errors.Is(err, fsfreeze.ErrBroken) {
		t.Errorf("release: %v", err)
	}
}

func TestFrozenByOthersIsBusyAndThePostHookRuns(t *testing.T) {
	dev, dir := mounted(t, "ext4")
	log := t.TempDir() + "/log"
	o := sources(t, dev)
	o.Hooks = view.Hooks{Pre: "fsfreeze --freeze " + dir, Post: logHook(log, "post")}
	_, err := view.Freeze(o).Take(t.Context(), anyInstant)
	if !errors.Is(err, fsfreeze.ErrBusy) {
		t.Errorf("hold: %v, want busy", err)
	}
	wantLogged(t, log, "post")
	wantFrozen(t, dir)
	mountstest.Run(t, "fsfreeze", "--unfreeze", dir)
	wantThawed(t, dir)
}

func TestWritesPastTheFilesystemBreakTheFreeze(t *testing.T) {
	disk, parts := mountstest.Partitioned(t, large, 2)
	mountstest.Mkfs(t, "ext4", parts[0])
	dir := mount(t, parts[0])
	h := hold(t, view.Freeze(sources(t, disk)))
	write(t, parts[1], 8192)
	wantBroken(t, h.Release(), disk, "16 sectors were written")
	wantThawed(t, dir)
}

// write writes n bytes to the start of a device or file, and syncs.
func write(t *testing.T, path string, n int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(slices.Repeat([]byte{0x5a}, n))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestFreezeNeedsAWritableFilesystem(t *testing.T) {
	dev := mountstest.Disk(t, small)
	refused := func() {
		t.Helper()
		if _, err := view.Freeze(sources(t, dev)).Take(t.Context(), anyInstant); !errors.Is(err, view.ErrNothingToFreeze) {
			t.Errorf("hold: %v", err)
		}
	}
	refused()
	mountstest.Mkfs(t, "ext4", dev)
	refused()
	mount(t, dev, "-o", "ro")
	refused()
}

func TestFilesystemMountedByTheHookIsFrozenToo(t *testing.T) {
	disk, parts := mountstest.Partitioned(t, large, 2)
	mountstest.Mkfs(t, "ext4", parts[0])
	mountstest.Mkfs(t, "ext4", parts[1])
	a, b := mount(t, parts[0]), t.TempDir()
	t.Cleanup(func() { mountstest.Unmount(t, b) })
	mountstest.ThawAtEnd(t, b)
	o := sources(t, disk)
	o.Hooks.Pre = "mount " + parts[1] + " " + b
	h := hold(t, view.Freeze(o))
	wantFrozen(t, a, b)
	if err := h.Release(); err != nil {
		t.Error(err)
	}
}

func TestCompressedMemoryDiskFreezesAndCounts(t *testing.T) {
	id, err := os.ReadFile("/sys/class/zram-control/hot_add")
	if err != nil {
		t.Fatalf("zram: %v", err)
	}
	name := "zram" + strings.TrimSpace(string(id))
	t.Cleanup(func() {
		mountstest.Eventually(t, "removing "+name, func() bool {
			return os.WriteFile("/sys/class/zram-control/hot_remove", id, 0) == nil
		})
	})
	if err := os.WriteFile("/sys/block/"+name+"/disksize", []byte("64M"), 0); err != nil {
		t.Fatal(err)
	}
	dev := "/dev/" + name
	h := hold(t, view.Offline(sources(t, dev)))
	mountstest.Mkfs(t, "ext4", dev)
	wantBroken(t, h.Release(), "sectors were written")
	dir := mount(t, dev)
	h = hold(t, view.Freeze(sources(t, dev)))
	wantFrozen(t, dir)
	if err := h.Release(); err != nil {
		t.Error(err)
	}
	wantThawed(t, dir)
}

func TestNoSourceIsAnError(t *testing.T) {
	for _, kind := range []string{"auto", "freeze", "offline"} {
		if _, why, err := view.Choose(t.Context(), kind, view.Options{}); err == nil {
			t.Errorf("%s was chosen: %s", kind, why)
		}
	}
}

// The path of a source may lead to another device by the time that a view is taken.
func TestAViewIsOfTheDeviceThatWasOpened(t *testing.T) {
	dev, dir := mounted(t, "ext4")
	other := mountstest.Disk(t, small)
	link := t.TempDir() + "/disk"
	if err := os.Symlink(dev, link); err != nil {
		t.Fatal(err)
	}
	o := sources(t, link)
	if err := errors.Join(os.Remove(link), os.Symlink(other, link)); err != nil {
		t.Fatal(err)
	}
	p, why, err := view.Choose(t.Context(), "auto", o)
	if err != nil || p.Kind() != "freeze" {
		t.Fatalf("chose %q, %v", why, err)
	}
	h := hold(t, p)
	wantFrozen(t, dir)
	write(t, other, 4096)
	if err := h.Release(); err != nil {
		t.Errorf("a write to the other device: %v", err)
	}
}

// The page cache of a partition holds what a program wrote to it raw, and what a loop
// device on it wrote; no freeze writes it out, and no read of the disk below sees it.
func TestWhatPageCachesHoldIsWrittenOutBeforeTheInstant(t *testing.T) {
	disk, parts := mountstest.Partitioned(t, 2*small, 2)
	loop := mountstest.Attach(t, parts[0])
	mountstest.Mkfs(t, "ext4", loop)
	dir := mount(t, loop, "-o", "nobarrier")
	direct, err := block.Open(disk, block.Options{Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close()
	p := view.Freeze(sources(t, disk))
	for _, fill := range []byte{0, 0x5a, 0xa5} {
		raw, err := os.OpenFile(parts[1], os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		v, err := p.Take(t.Context(), func(context.Context) error {
			return sameBelow(direct, parts)
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Close(); err != nil {
			t.Error(err)
		}
		_, err = raw.WriteAt(slices.Repeat([]byte{fill}, 1<<20), 4096)
		if err := errors.Join(err, os.WriteFile(dir+"/file", slices.Repeat([]byte{fill}, 1<<20), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
}

// sameBelow compares partitions, as programs see them, with their disk.
func sameBelow(disk *block.Device, parts []string) error {
	for _, part := range parts {
		id, err := block.Identify(part)
		if err != nil {
			return err
		}
		above, err := os.ReadFile(part)
		if err != nil {
			return err
		}
		below := block.AlignedBuffer(int(id.Size))
		if _, err := disk.ReadAt(below, id.Start); err != nil {
			return err
		}
		if !bytes.Equal(above, below) {
			return errors.New(part + ": its disk does not have what it holds")
		}
	}
	return nil
}

func TestFreezeIsQuickUnderAWriter(t *testing.T) {
	dev, dir := mounted(t, "ext4")
	load := exec.Command("sh", "-c", `while :; do dd if=/dev/zero of="$0/load" bs=64k count=64 status=none; done`, dir)
	load.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := load.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Kill(-load.Process.Pid, unix.SIGKILL)
		load.Wait()
	})
	var times []time.Duration
	for range 10 {
		h := hold(t, view.Freeze(sources(t, dev)))
		if err := h.Release(); err != nil {
			t.Fatal(err)
		}
		times = append(times, h.Report().Frozen)
	}
	slices.Sort(times)
	t.Logf("frozen for %v", times)
	if median := times[len(times)/2]; median > 2*time.Second {
		t.Errorf("median %v although nothing was done", median)
	}
}
