// Package mountstest makes disks, filesystems and mounts for tests of other
// packages, and takes them apart when the test ends, thawing first what the test
// left frozen.
//
// It owns only what it made. It needs root and the tools of util-linux and of the
// filesystems; where one is missing, the test fails and says which. It is for one
// test at a time per value of testing.TB.
package mountstest

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a condition that must come true is waited for.
const patience = 20 * time.Second

// Run runs a tool and returns what it printed; the test fails when it fails.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: run make test")
	}
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("%v: run scripts/setup", err)
	}
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// Image makes a sparse file of size bytes.
func Image(t testing.TB, size int64) string {
	t.Helper()
	return ImageIn(t, t.TempDir(), size)
}

// ImageIn makes a sparse file of size bytes in dir.
func ImageIn(t testing.TB, dir string, size int64) string {
	t.Helper()
	f, err := os.CreateTemp(dir, "disk-*.img")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// Attach makes a loop device over the file or device at path, and returns its
// node. Its partitions are scanned.
func Attach(t testing.TB, path string) string {
	t.Helper()
	dev := Run(t, "losetup", "--find", "--show", "--partscan", path)
	t.Cleanup(func() { Run(t, "losetup", "--detach", dev) })
	return dev
}

// Disk is Attach over a new Image.
func Disk(t testing.TB, size int64) string {
	t.Helper()
	return Attach(t, Image(t, size))
}

// Partitioned makes a disk with a GPT and count partitions of equal size, and
// returns the nodes of the disk and of the partitions.
func Partitioned(t testing.TB, size int64, count int) (disk string, parts []string) {
	t.Helper()
	disk = Disk(t, size)
	var script strings.Builder
	script.WriteString("label: gpt\n")
	each := (size>>20 - 2) / int64(count)
	for range count {
		script.WriteString("size=" + strconv.FormatInt(each-1, 10) + "MiB\n")
	}
	cmd := exec.Command("sfdisk", "--quiet", disk)
	cmd.Stdin = strings.NewReader(script.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	// A kernel may be built without the parser for this table; partx is not.
	Run(t, "partx", "--update", disk)
	for i := range count {
		part := disk + "p" + strconv.Itoa(i+1)
		Eventually(t, part+" appears", func() bool { _, err := os.Stat(part); return err == nil })
		parts = append(parts, part)
	}
	return disk, parts
}

// Mkfs makes a filesystem, "ext4", "xfs" or "btrfs", on the devices.
func Mkfs(t testing.TB, kind string, devs ...string) {
	t.Helper()
	args := map[string][]string{
		"ext4":  {"-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"},
		"xfs":   {"-q", "-f"},
		"btrfs": {"-q", "-f"},
	}[kind]
	Run(t, "mkfs."+kind, append(args, devs...)...)
}

// Mount mounts dev on a new folder and returns that.
func Mount(t testing.TB, dev string, options ...string) string {
	t.Helper()
	dir := t.TempDir()
	MountAt(t, dev, dir, options...)
	return dir
}

// MountAt mounts dev on dir, with mount(8)'s options.
func MountAt(t testing.TB, dev, dir string, options ...string) {
	t.Helper()
	Run(t, "mount", append(options, dev, dir)...)
	t.Cleanup(func() { Unmount(t, dir) })
}

// Unmount takes the topmost mount on dir away, if one is left, and waits until it has no
// user.
func Unmount(t testing.TB, dir string) {
	t.Helper()
	Eventually(t, "unmounting "+dir, func() bool {
		Thaw(dir)
		err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
		return err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT)
	})
}

// Thaw thaws the filesystem at path if it is frozen, and says whether it was.
func Thaw(path string) bool {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	const fiThaw = 0xc0045878 // _IOWR('X', 120, int), include/uapi/linux/fs.h
	return unix.IoctlSetInt(fd, fiThaw, 0) == nil
}

// ThawAtEnd thaws path when the test ends, whatever became of the test.
func ThawAtEnd(t testing.TB, path string) {
	t.Cleanup(func() { Thaw(path) })
}

// Eventually waits until condition holds, and fails the test when it does not.
func Eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// Writable says whether a file in dir can be written and synced within limit. A
// write that does not come through in time is left to itself: it goes on when the
// filesystem thaws.
func Writable(dir string, limit time.Duration) bool {
	done := make(chan error, 1)
	go func() {
		f, err := os.CreateTemp(dir, "probe-*")
		if err != nil {
			done <- err
			return
		}
		_, err = f.WriteString("written")
		done <- errors.Join(err, f.Sync(), f.Close(), os.Remove(f.Name()))
	}()
	select {
	case err := <-done:
		return err == nil
	case <-time.After(limit):
		return false
	}
}
