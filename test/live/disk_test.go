package live_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/linux/mounts/mountstest"
)

// must runs a program and returns what it printed.
func must(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v (scripts/setup installs what is missing)\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// scratch returns a folder in memory where there is one, so that the disk below
// is not what limits the writers.
func scratch(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "tidemark-live-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// loop attaches a new sparse image of size bytes.
func loop(t testing.TB, dir string, size int64) string {
	t.Helper()
	return loopWith(t, dir, size)
}

// loopWith is loop with arguments for losetup.
func loopWith(t testing.TB, dir string, size int64, args ...string) string {
	t.Helper()
	image := filepath.Join(dir, "source.img")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, size); err != nil {
		t.Fatal(err)
	}
	dev := must(t, "losetup", append(args, "--find", "--show", "--direct-io=on", image)...)
	t.Cleanup(func() { must(t, "losetup", "--detach", dev) })
	return dev
}

// loopOver attaches a loop device over another device.
func loopOver(t testing.TB, below string) string {
	t.Helper()
	dev := must(t, "losetup", "--find", "--show", below)
	t.Cleanup(func() { must(t, "losetup", "--detach", dev) })
	return dev
}

// partitioned attaches a disk and returns its second partition.
func partitioned(t testing.TB, dir string, size int64) string {
	t.Helper()
	dev := loop(t, dir, size)
	cmd := exec.Command("sfdisk", "--quiet", dev)
	cmd.Stdin = strings.NewReader("label: gpt\nsize=16MiB\nsize=+\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v: %s", err, out)
	}
	must(t, "partx", "--update", dev)
	t.Cleanup(func() { must(t, "partx", "--delete", dev) })
	return dev + "p2"
}

// zram makes a disk in memory, which is bio-based.
func zram(t testing.TB, _ string, size int64) string {
	t.Helper()
	n, err := os.ReadFile("/sys/class/zram-control/hot_add")
	if err != nil {
		t.Fatalf("zram: %v", err)
	}
	id := strings.TrimSpace(string(n))
	dev := "/dev/zram" + id
	t.Cleanup(func() {
		// The kernel lets go of an unmounted device a little later.
		mountstest.Eventually(t, "removing "+dev, func() bool {
			return os.WriteFile("/sys/class/zram-control/hot_remove", []byte(id), 0o200) == nil
		})
	})
	if err := os.WriteFile("/sys/block/zram"+id+"/disksize", fmt.Append(nil, size), 0o200); err != nil {
		t.Fatalf("zram: %v", err)
	}
	return dev
}

// mount puts a filesystem on dev and mounts it.
func mount(t testing.TB, fs, dev, dir string) string {
	t.Helper()
	switch fs {
	case "ext4":
		must(t, "mkfs.ext4", "-q", "-F", dev)
	case "xfs":
		must(t, "mkfs.xfs", "-q", "-f", dev)
	case "btrfs":
		must(t, "mkfs.btrfs", "-q", "-f", dev)
	}
	at := filepath.Join(dir, "mnt")
	if err := os.MkdirAll(at, 0o700); err != nil {
		t.Fatal(err)
	}
	must(t, "mount", "-t", fs, dev, at)
	t.Cleanup(func() {
		must(t, "umount", at)
		if image := filepath.Join(dir, "mirror.img"); fs == "btrfs" && !t.Failed() {
			must(t, "btrfs", "device", "scan", "--forget")
			readFiles(t, fs, "ro,loop", image, dir)
		}
	})
	return at
}

// checkFilesystem has the filesystem's own checker look at an image of a
// filesystem that is still mounted elsewhere, mounts it read-only and reads every
// file.
func checkFilesystem(t testing.TB, fs, image, dir string) {
	t.Helper()
	switch fs {
	case "ext4":
		must(t, "e2fsck", "-fn", image)
		readFiles(t, fs, "ro,loop,noload", image, dir)
	case "xfs":
		checkXFS(t, image, dir)
	case "btrfs":
		// The kernel takes a second filesystem of the same uuid for a member of
		// the first: this one is mounted when its original no longer is.
		must(t, "btrfs", "check", "--readonly", image)
	}
}

// checkXFS replays the log first, in a copy: a frozen XFS leaves in its log what a
// mount needs to free unlinked files (xfs_fs_freeze in fs/xfs/xfs_super.c), and
// xfs_repair -n does not look into a log.
func checkXFS(t testing.TB, image, dir string) {
	t.Helper()
	readFiles(t, "xfs", "ro,loop,norecovery,nouuid", image, dir)
	replayed := filepath.Join(dir, "replayed.img")
	must(t, "cp", "--sparse=always", image, replayed)
	readFiles(t, "xfs", "rw,loop,nouuid", replayed, dir)
	must(t, "xfs_repair", "-n", "-f", replayed)
}

func readFiles(t testing.TB, fs, options, image, dir string) {
	t.Helper()
	at := filepath.Join(dir, "copy")
	if err := os.MkdirAll(at, 0o700); err != nil {
		t.Fatal(err)
	}
	must(t, "mount", "-t", fs, "-o", options, image, at)
	defer must(t, "umount", at)
	must(t, "sh", "-c", "find "+at+" -type f -exec cat {} + >/dev/null")
}
