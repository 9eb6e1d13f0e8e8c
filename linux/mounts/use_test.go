package mounts_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/linux/mounts"
	"tidemark/linux/mounts/mountstest"
)

func use(t *testing.T, path string) mounts.Use {
	t.Helper()
	u, err := read(t).UseOf(path)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestUnusedDeviceIsFree(t *testing.T) {
	disk, parts := mountstest.Partitioned(t, large, 2)
	for _, path := range append(parts, disk, mountstest.Image(t, small)) {
		if u := use(t, path); u.InUse() || u.String() != "" {
			t.Errorf("%s: %v (%+v), want free", path, u, u)
		}
	}
}

// Each look holds the device for a moment.
func TestWhoLooksAtOnceIsNoUser(t *testing.T) {
	disk, table := mountstest.Disk(t, small), read(t)
	var looking sync.WaitGroup
	for range 3 {
		looking.Go(func() {
			for range 100 {
				if u, err := table.UseOf(disk); err != nil || u.InUse() {
					t.Errorf("%+v, %v", u, err)
					return
				}
			}
		})
	}
	looking.Wait()
}

func TestMountedPartitionMakesDiskUsedButNotItsSibling(t *testing.T) {
	disk, parts := mountstest.Partitioned(t, large, 2)
	mountstest.Mkfs(t, "ext4", parts[0])
	mountstest.Mount(t, parts[0])
	for _, path := range []string{disk, parts[0]} {
		if u := use(t, path); len(u.Filesystems) != 1 || !u.Claimed {
			t.Errorf("%s: %+v, want mounted", path, u)
		}
	}
	if u := use(t, parts[1]); u.InUse() {
		t.Errorf("sibling: %v, want free", u)
	}
}

func TestImageBehindMountedLoopIsUsed(t *testing.T) {
	image := mountstest.Image(t, small)
	disk := mountstest.Attach(t, image)
	if u := use(t, image); len(u.Holders) != 1 {
		t.Errorf("attached image: %+v, want a holder", u)
	}
	mountstest.Mkfs(t, "ext4", disk)
	mountstest.Mount(t, disk)
	if u := use(t, image); len(u.Filesystems) != 1 {
		t.Errorf("image of a mounted disk: %+v, want its filesystem", u)
	}
}

func TestDeviceUnderLoopHasAHolder(t *testing.T) {
	disk := mountstest.Disk(t, small)
	over := mountstest.Attach(t, disk)
	if u := use(t, disk); !slices.Equal(u.Holders, []string{over[len("/dev/"):]}) {
		t.Errorf("%+v, want the holder %s", u, over)
	}
}

func TestHiddenUserStillClaims(t *testing.T) {
	disk := mountstest.Disk(t, small)
	mountstest.Mkfs(t, "ext4", disk)
	dir := mountstest.Mount(t, disk)
	busy, err := os.Create(dir + "/busy")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	u := use(t, disk)
	if len(u.Filesystems) != 0 || !u.Claimed || u.String() == "" {
		t.Errorf("lazily unmounted: %+v, want it claimed by someone unseen", u)
	}
	busy.Close()
	mountstest.Eventually(t, "the claim ends", func() bool { return !use(t, disk).InUse() })
}

// hidden returns what is held by somebody unseen.
func hidden(t *testing.T, paths ...string) []string {
	t.Helper()
	list, err := read(t).Hidden(t.Context(), paths...)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestHiddenNamesTheDeviceThatNobodySeenHolds(t *testing.T) {
	disk, parts := mountstest.Partitioned(t, large, 3)
	mountstest.Mkfs(t, "ext4", parts[0])
	mountstest.Mkfs(t, "ext4", parts[1])
	seen, unseen := mountstest.Mount(t, parts[0]), mountstest.Mount(t, parts[1])
	mountstest.Run(t, "mkswap", parts[2])
	mountstest.Run(t, "swapon", parts[2])
	t.Cleanup(func() { mountstest.Run(t, "swapoff", parts[2]) })
	inner := mountstest.Attach(t, mountstest.ImageIn(t, seen, small))
	for _, path := range append(parts, disk, inner) {
		if got := hidden(t, path); len(got) != 0 {
			t.Errorf("%s: %q, but all is mounted where it can be seen", path, got)
		}
	}
	busy, err := os.Create(unseen + "/busy")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	if err := unix.Unmount(unseen, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	claim, err := os.OpenFile(inner, os.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer claim.Close()
	both := []string{inner, parts[1]}
	slices.Sort(both)
	for _, c := range []struct{ paths, want []string }{
		{[]string{disk}, both},
		{parts, both},
		{parts[:1], []string{inner}},
		{parts[1:2], parts[1:2]},
		{parts[2:], nil},
		{[]string{inner}, []string{inner}},
	} {
		synctest.Test(t, func(t *testing.T) { // the time passes in the test alone
			start := time.Now()
			if got := hidden(t, c.paths...); !slices.Equal(got, c.want) {
				t.Errorf("%q: %q, want %q", c.paths, got, c.want)
			}
			if took := time.Since(start); took >= 2*time.Second {
				t.Errorf("%q: %v, but all claims together get one second", c.paths, took)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		ended := errors.New("ended by the test")
		cancel(ended)
		start := time.Now()
		if got, err := read(t).Hidden(ctx, disk); !errors.Is(err, ended) || got != nil {
			t.Errorf("after its context ended: %q, %v", got, err)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("it waited for %v after its context had ended", took)
		}
	})
}

// snapd keeps its old base in such a namespace: a squashfs in a file of the source.
func TestWhoHoldsALoopDeviceThatWasAttachedReadOnlyIsNotHidden(t *testing.T) {
	outer := mountstest.Disk(t, large)
	mountstest.Mkfs(t, "ext4", outer)
	dir := mountstest.Mount(t, outer)
	image := mountstest.ImageIn(t, dir, small)
	mountstest.Mkfs(t, "ext4", image)
	loop := mountstest.Run(t, "losetup", "--find", "--show", "--read-only", image)
	t.Cleanup(func() { mountstest.Run(t, "losetup", "--detach", loop) })
	lower := mountstest.Mount(t, loop, "-o", "ro")
	busy, err := os.Open(lower)
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	if err := unix.Unmount(lower, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if u := use(t, loop); !u.Claimed {
		t.Fatalf("%+v, want it claimed", u)
	}
	for _, path := range []string{outer, loop, image} {
		if got := hidden(t, path); len(got) != 0 {
			t.Errorf("%s: %q, but its holder cannot write", path, got)
		}
	}
}

// Writes go on to a disk that is made read-only while it is in use.
func TestHiddenHolderOfADiskThatWasMadeReadOnlyIsNamed(t *testing.T) {
	disk := mountstest.Disk(t, small)
	claim, err := os.OpenFile(disk, os.O_RDWR|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer claim.Close()
	mountstest.Run(t, "blockdev", "--setro", disk)
	t.Cleanup(func() { mountstest.Run(t, "blockdev", "--setrw", disk) })
	synctest.Test(t, func(t *testing.T) {
		if got := hidden(t, disk); !slices.Equal(got, []string{disk}) {
			t.Errorf("%q, want %s", got, disk)
		}
	})
}

func TestSwapIsFoundOnItsDeviceAndThroughItsFile(t *testing.T) {
	disk, parts := mountstest.Partitioned(t, large, 2)
	mountstest.Run(t, "mkswap", parts[0])
	mountstest.Mkfs(t, "ext4", parts[1])
	dir := mountstest.Mount(t, parts[1])
	file := dir + "/swap file"
	mountstest.Run(t, "dd", "if=/dev/zero", "of="+file, "bs=1M", "count=8", "status=none")
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	mountstest.Run(t, "mkswap", file)
	for _, area := range []string{parts[0], file} {
		mountstest.Run(t, "swapon", "--priority", "0", area)
		t.Cleanup(func() { mountstest.Run(t, "swapoff", area) })
	}
	table := read(t)
	for path, want := range map[string][]string{
		disk: {parts[0], file}, parts[0]: {parts[0]}, parts[1]: {file},
	} {
		swaps, err := table.SwapsOn(device(t, path))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range swaps {
			got = append(got, s.Path)
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: swap areas %q, want %q", path, got, want)
		}
	}
	if u := use(t, parts[0]); len(u.Swaps) != 1 || !u.Claimed {
		t.Errorf("swap partition: %+v", u)
	}
}

func TestThroughFollowsWritesDown(t *testing.T) {
	outer := mountstest.Disk(t, large)
	mountstest.Mkfs(t, "ext4", outer)
	dir := mountstest.Mount(t, outer)
	inner := mountstest.Attach(t, mountstest.ImageIn(t, dir, small))
	mountstest.Mkfs(t, "ext4", inner)
	nested := mountstest.Mount(t, inner)
	for _, d := range []string{"/lower", "/upper", "/work", "/all"} {
		if err := os.Mkdir(dir+d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	mountstest.MountAt(t, "overlay", dir+"/all", "-t", "overlay",
		"-o", "lowerdir="+dir+"/lower,upperdir="+dir+"/upper,workdir="+dir+"/work")
	table := read(t)
	home, err := table.Of(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string][]string{
		dir + "/new":             {dir, home.Mounts[0].Point},
		dir + "/all/not/yet":     {dir + "/all", dir, home.Mounts[0].Point},
		nested + "/not/yet/here": {nested, dir, home.Mounts[0].Point},
		inner:                    {dir, home.Mounts[0].Point},
		outer:                    {home.Mounts[0].Point},
	} {
		through, err := table.Through(path)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range through {
			got = append(got, f.Mounts[0].Point)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: through %q, want %q", path, got, want)
		}
	}
}
