package bpf_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/track"
	"tidemark/track/bpf"
)

// The tests here work on real disks: loop devices, zram. They need root.

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("%s is missing: install the Debian packages util-linux and e2fsprogs", name)
	}
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// places returns options with a bpffs and a state folder of their own, so that
// no other tracking on the machine is touched.
func places(t testing.TB) bpf.Options {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root")
	}
	dir := t.TempDir()
	fs := filepath.Join(dir, "bpf")
	if err := os.Mkdir(fs, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("bpf", fs, "bpf", 0, "mode=700"); err != nil {
		t.Fatal("mount bpffs:", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(fs, unix.MNT_DETACH); err != nil {
			t.Error("unmount bpffs:", err)
		}
	})
	return bpf.Options{RunDir: filepath.Join(dir, "run"), BPFFS: fs}
}

// tmpfs returns a folder in memory.
func tmpfs(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal("mount tmpfs:", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error("unmount tmpfs:", err)
		}
	})
	return dir
}

// sparse makes a file of size bytes that takes no room.
func sparse(t testing.TB, size int64) string {
	t.Helper()
	name := filepath.Join(tmpfs(t), "disk")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, size); err != nil {
		t.Fatal(err)
	}
	return name
}

// loop attaches a loop device to the file for the time of the test.
func loop(t testing.TB, file string, args ...string) string {
	t.Helper()
	dev := run(t, "losetup", append([]string{"--find", "--show", "--direct-io=on"}, append(args, file)...)...)
	t.Cleanup(func() { run(t, "losetup", "-d", dev) })
	return dev
}

func loopDisk(t testing.TB, size int64) string { return loop(t, sparse(t, size)) }

// opened is bpf.Open of the device at a path.
func opened(ctx context.Context, dev string, opts bpf.Options) (*bpf.Tracker, error) {
	d, err := block.Open(dev, block.Options{})
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return bpf.Open(ctx, d, opts)
}

func open(t testing.TB, dev string, opts bpf.Options) *bpf.Tracker {
	t.Helper()
	l, err := opened(t.Context(), dev, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func cut(t testing.TB, l *bpf.Tracker) track.Mark {
	t.Helper()
	c, err := l.Cut(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if c.Doubt {
		t.Log("doubt at", c.Mark)
	}
	return c.Mark
}

// write puts n bytes of value b at off, past all caches.
func write(t testing.TB, dev string, off int64, n int, b byte) {
	t.Helper()
	d, err := block.Open(dev, block.Options{Write: true, Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	buf := block.AlignedBuffer(n)
	copy(buf, bytes.Repeat([]byte{b}, n))
	if _, err := d.WriteAt(buf, off); err != nil {
		t.Fatal(err)
	}
}

// partitioned returns a loop device and its two partitions.
func partitioned(t testing.TB, size int64) (disk, p1, p2 string) {
	t.Helper()
	disk = loop(t, sparse(t, size), "--partscan")
	// Told to the kernel one by one, as kernels without the parser need it. The
	// second does not begin at a multiple of 4096 bytes.
	run(t, "addpart", disk, "1", "2048", "16384")
	run(t, "addpart", disk, "2", "18433", fmt.Sprint(size/512-18433-34))
	return disk, disk + "p1", disk + "p2"
}

// zram returns a new bio-based disk.
func zram(t testing.TB, size int64) string {
	t.Helper()
	dev, remove := addZram(t, size)
	t.Cleanup(remove)
	return dev
}

// addZram makes a bio-based disk; the caller removes it.
func addZram(t testing.TB, size int64) (dev string, remove func()) {
	t.Helper()
	raw, err := os.ReadFile("/sys/class/zram-control/hot_add")
	if err != nil {
		t.Fatal("needs the zram module:", err)
	}
	id := strings.TrimSpace(string(raw))
	remove = func() {
		if err := os.WriteFile("/sys/class/zram-control/hot_remove", []byte(id), 0); err != nil {
			t.Error("remove zram:", err)
		}
	}
	if err := os.WriteFile("/sys/block/zram"+id+"/disksize", fmt.Append(nil, size), 0); err != nil {
		remove()
		t.Fatal("zram:", err)
	}
	return "/dev/zram" + id, remove
}
