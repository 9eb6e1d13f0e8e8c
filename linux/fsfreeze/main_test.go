package fsfreeze_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/linux/fsfreeze"
	"tidemark/linux/mounts/mountstest"
	"tidemark/linux/reexec"
)

// childArg makes the test binary play a program that freezes: childArg, how long
// it may, a mode, and the folders. The mode is "root", "nobody" to be without
// privileges, or "wait" to wait for a line before the freeze.
const childArg = "freeze-child"

func TestMain(m *testing.M) {
	reexec.Main(fsfreeze.Watchdog)
	if len(os.Args) > 1 && os.Args[1] == childArg {
		if err := child(os.Args[2], os.Args[3], os.Args[4:]); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child says each stage on standard output and thaws when its input ends.
func child(limit, mode string, dirs []string) error {
	max, err := time.ParseDuration(limit)
	if err != nil {
		return err
	}
	list, err := filesystems(dirs)
	if err != nil {
		return err
	}
	if mode == "nobody" {
		if err := unix.Setresuid(65534, 65534, 65534); err != nil {
			return err
		}
	}
	fmt.Println("arming")
	ctx := context.Background()
	g, err := fsfreeze.Arm(ctx, list)
	if err != nil {
		return err
	}
	defer g.Close()
	fmt.Println("armed", g.Watchdog())
	if err := g.Sync(ctx); err != nil {
		return err
	}
	fmt.Println("synced")
	if mode == "wait" {
		if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
			return err
		}
	}
	if _, err := g.Freeze(ctx, max); err != nil {
		return err
	}
	fmt.Println("frozen")
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	fmt.Println("thawing")
	if err := g.Thaw(); err != nil {
		return err
	}
	fmt.Println("thawed")
	return nil
}

func filesystems(dirs []string) ([]fsfreeze.Filesystem, error) {
	var list []fsfreeze.Filesystem
	for _, dir := range dirs {
		f, err := os.Open(dir)
		if err != nil {
			return nil, err
		}
		list = append(list, fsfreeze.Filesystem{Name: dir, Dir: f})
	}
	return list, nil
}

// disk returns the folder of a fresh filesystem that is thawed when the test ends.
func disk(t *testing.T, kind string) string {
	t.Helper()
	size := int64(64 << 20)
	if kind != "ext4" {
		size = 512 << 20
	}
	dev := mountstest.Disk(t, size)
	mountstest.Mkfs(t, kind, dev)
	dir := mountstest.Mount(t, dev)
	mountstest.ThawAtEnd(t, dir)
	return dir
}

func arm(t *testing.T, dirs ...string) *fsfreeze.Guard {
	t.Helper()
	list, err := filesystems(dirs)
	if err != nil {
		t.Fatal(err)
	}
	g, err := fsfreeze.Arm(context.Background(), list)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

func mustFreeze(t *testing.T, g *fsfreeze.Guard, limit time.Duration) {
	t.Helper()
	if passed, err := g.Freeze(context.Background(), limit); err != nil || len(passed) > 0 {
		t.Fatalf("freeze: %v, passed over %q", err, passed)
	}
}

// Bounds on waiting for a write: one that must not come through, and one that must.
const (
	blockedFor = 150 * time.Millisecond
	thawedBy   = 15 * time.Second
)

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

func wantBroken(t *testing.T, err error, words string) {
	t.Helper()
	if !errors.Is(err, fsfreeze.ErrBroken) || !strings.Contains(err.Error(), words) {
		t.Errorf("thaw: %v, want it broken: %s", err, words)
	}
}

// gone says whether a process has ended and was reaped, or waits to be by its
// parent while holding nothing any more.
func gone(pid int) bool { return errors.Is(unix.Kill(pid, 0), unix.ESRCH) }
