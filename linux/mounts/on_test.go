package mounts_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark/linux/mounts"
	"tidemark/linux/mounts/mountstest"
	"tidemark/linux/sysfs"
)

const (
	small = 64 << 20  // holds an ext4
	large = 512 << 20 // holds any
)

func read(t *testing.T) *mounts.Table {
	t.Helper()
	table, err := mounts.Read()
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func device(t *testing.T, path string) sysfs.Dev {
	t.Helper()
	d, err := mounts.DeviceOf(path)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// pointsOn returns the first mountpoint of each filesystem on the devices.
func pointsOn(t *testing.T, table *mounts.Table, devs ...string) []string {
	t.Helper()
	var numbers []sysfs.Dev
	for _, d := range devs {
		numbers = append(numbers, device(t, d))
	}
	on, err := table.On(numbers...)
	if err != nil {
		t.Fatal(err)
	}
	var points []string
	for _, f := range on {
		points = append(points, f.Mounts[0].Point)
	}
	return points
}

func wantPoints(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("filesystems at %q, want %q", got, want)
	}
}

func TestPartitionHasItsFilesystemAloneAndDiskHasAll(t *testing.T) {
	disk, parts := mountstest.Partitioned(t, 2*large, 2)
	mountstest.Mkfs(t, "ext4", parts[0])
	mountstest.Mkfs(t, "xfs", parts[1])
	first := mountstest.Mount(t, parts[0])
	second := mountstest.Mount(t, parts[1])
	table := read(t)
	wantPoints(t, pointsOn(t, table, disk), second, first)
	wantPoints(t, pointsOn(t, table, parts[0]), first)
	wantPoints(t, pointsOn(t, table, parts[1]), second)
	wantPoints(t, pointsOn(t, table, parts[0], parts[1]), second, first)
	wantPoints(t, pointsOn(t, table, mountstest.Disk(t, small)))
}

func TestSuperblockCountsOnceHoweverOftenMounted(t *testing.T) {
	disk := mountstest.Disk(t, small)
	mountstest.Mkfs(t, "ext4", disk)
	dir := mountstest.Mount(t, disk)
	bind := t.TempDir()
	mountstest.MountAt(t, dir, bind, "--bind")
	again := mountstest.Mount(t, disk)
	on, err := read(t).On(device(t, disk))
	if err != nil {
		t.Fatal(err)
	}
	if len(on) != 1 || len(on[0].Mounts) != 3 {
		t.Fatalf("%d filesystems %v, want one with mounts at %s, %s and %s", len(on), on, dir, bind, again)
	}
	if on[0].ReadOnly || on[0].Type != "ext4" || on[0].Source != disk {
		t.Errorf("got %+v", on[0])
	}
}

func TestReadOnlyIsWhatTheSuperblockSays(t *testing.T) {
	disk := mountstest.Disk(t, small)
	mountstest.Mkfs(t, "ext4", disk)
	dir := mountstest.Mount(t, disk, "-o", "ro")
	on, err := read(t).On(device(t, disk))
	if err != nil || len(on) != 1 || !on[0].ReadOnly {
		t.Fatalf("mounted read-only: %+v, %v", on, err)
	}
	mountstest.Run(t, "mount", "-o", "remount,rw", dir)
	bind := t.TempDir()
	mountstest.MountAt(t, dir, bind, "--bind")
	mountstest.Run(t, "mount", "-o", "remount,bind,ro", dir)
	on, err = read(t).On(device(t, disk))
	if err != nil || len(on) != 1 || on[0].ReadOnly {
		t.Fatalf("read-only bind mount of a writable filesystem: %+v, %v", on, err)
	}
}

func TestBtrfsIsOnEachOfItsDevices(t *testing.T) {
	a, b := mountstest.Disk(t, large), mountstest.Disk(t, large)
	mountstest.Mkfs(t, "btrfs", a, b)
	mountstest.Run(t, "btrfs", "device", "scan", a, b)
	dir := mountstest.Mount(t, b)
	mountstest.Run(t, "btrfs", "subvolume", "create", dir+"/sub")
	sub := mountstest.Mount(t, a, "-o", "subvol=sub")
	table := read(t)
	wantPoints(t, pointsOn(t, table, a), dir)
	wantPoints(t, pointsOn(t, table, b), dir)
	on, _ := table.On(device(t, a))
	if len(on) != 1 || len(on[0].Mounts) != 2 || len(on[0].Members) != 2 {
		t.Fatalf("%+v, want one filesystem of two devices with mounts at %s and %s", on, dir, sub)
	}
	file, err := table.Open(on[0])
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	if f, err := table.Of(sub + "/file"); err != nil || f.Dev != on[0].Dev {
		t.Errorf("a path in the subvolume is on %+v, %v", f, err)
	}
}

func TestFilesystemOnLoopIsFrozenBeforeTheOneThatHoldsItsFile(t *testing.T) {
	outer := mountstest.Disk(t, large)
	mountstest.Mkfs(t, "ext4", outer)
	dir := mountstest.Mount(t, outer)
	inner := mountstest.Attach(t, mountstest.ImageIn(t, dir, small))
	mountstest.Mkfs(t, "ext4", inner)
	nested := mountstest.Mount(t, inner)
	wantPoints(t, pointsOn(t, read(t), outer), nested, dir)
	wantPoints(t, pointsOn(t, read(t), inner), nested)

	// Mounted anew elsewhere, the outer one is the later mount; it must still be
	// frozen last.
	moved := mountstest.Mount(t, outer)
	mountstest.Run(t, "umount", "--lazy", dir)
	wantPoints(t, pointsOn(t, read(t), outer), nested, moved)
}

func TestLoopOverDeletedFileIsFollowed(t *testing.T) {
	outer := mountstest.Disk(t, large)
	mountstest.Mkfs(t, "ext4", outer)
	dir := mountstest.Mount(t, outer)
	image := mountstest.ImageIn(t, dir, small)
	inner := mountstest.Attach(t, image)
	mountstest.Mkfs(t, "ext4", inner)
	nested := mountstest.Mount(t, inner)
	if err := os.Remove(image); err != nil {
		t.Fatal(err)
	}
	wantPoints(t, pointsOn(t, read(t), outer), nested, dir)
}

func TestLoopOverDeviceIsFollowed(t *testing.T) {
	disk := mountstest.Disk(t, small)
	over := mountstest.Attach(t, disk)
	mountstest.Mkfs(t, "ext4", over)
	dir := mountstest.Mount(t, over)
	wantPoints(t, pointsOn(t, read(t), disk), dir)
}

func TestOtherMountNamespacesAreSeen(t *testing.T) {
	disk := mountstest.Disk(t, small)
	mountstest.Mkfs(t, "ext4", disk)
	dir := t.TempDir()
	cmd := exec.Command("unshare", "--mount", "sh", "-c", `mount "$0" "$1" && echo ready && read end`, disk, dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	table := read(t)
	on, err := table.On(device(t, disk))
	if err != nil || len(on) != 1 {
		t.Fatalf("%v, %v; want the mount of another namespace", on, err)
	}
	if on[0].Mounts[0].PID == 0 {
		t.Errorf("%+v, want it told apart from our own", on[0].Mounts)
	}
	file, err := table.Open(on[0])
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	wantOn(t, file, on[0])
}

func wantOn(t *testing.T, file *os.File, f mounts.Filesystem) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	if got := (sysfs.Dev{Major: unix.Major(st.Dev), Minor: unix.Minor(st.Dev)}); got != f.Dev {
		t.Errorf("%s is on device %s, want %s", file.Name(), got, f.Dev)
	}
}

func TestOpenReachesAMountpointThatIsNotCovered(t *testing.T) {
	disk := mountstest.Disk(t, small)
	mountstest.Mkfs(t, "ext4", disk)
	parent := t.TempDir()
	dir := filepath.Join(parent, "a", "b")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	mountstest.MountAt(t, disk, dir)
	open := func(t *testing.T) {
		table := read(t)
		on, err := table.On(device(t, disk))
		if err != nil || len(on) != 1 {
			t.Fatalf("%v, %v; want one filesystem", on, err)
		}
		file, err := table.Open(on[0])
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		wantOn(t, file, on[0])
	}
	t.Run("plain", open)
	for name, at := range map[string]string{"covered by a mount on it": dir, "covered by a mount on its parent": parent} {
		t.Run(name, func(t *testing.T) {
			mountstest.MountAt(t, "none", at, "-t", "tmpfs")
			table := read(t)
			on, err := table.On(device(t, disk))
			if err != nil || len(on) != 1 {
				t.Fatalf("%v, %v; want one filesystem", on, err)
			}
			if file, err := table.Open(on[0]); !errors.Is(err, mounts.ErrUnreachable) {
				t.Errorf("opened %v, %v", file, err)
			}
			mountstest.Mount(t, disk) // what the error says to do
			open(t)
		})
	}
	t.Run("covered, with another mountpoint free", func(t *testing.T) {
		bind := t.TempDir()
		mountstest.MountAt(t, dir, bind, "--bind")
		mountstest.MountAt(t, "none", dir, "-t", "tmpfs")
		open(t)
	})
}

func TestOpenReachesFilesystemWhereOnlyAFileIsMounted(t *testing.T) {
	disk := mountstest.Disk(t, small)
	mountstest.Mkfs(t, "ext4", disk)
	dir := mountstest.Mount(t, disk)
	if err := os.WriteFile(dir+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	point := filepath.Join(t.TempDir(), "point")
	if err := os.WriteFile(point, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mountstest.MountAt(t, dir+"/file", point, "--bind")
	mountstest.Unmount(t, dir)
	table := read(t)
	on, err := table.On(device(t, disk))
	if err != nil || len(on) != 1 {
		t.Fatalf("%v, %v; want one filesystem", on, err)
	}
	file, err := table.Open(on[0])
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	wantOn(t, file, on[0])
}
