//go:build linux

// Package power_test runs in guests only (see package guest): what a filesystem has
// promised is there after the power was cut.
package power_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark/test/vm/guest"
)

func TestMain(m *testing.M) { guest.Main(m) }

// TestWrite writes files for ever and tells the host each that it synced; the host
// cuts the power.
func TestWrite(t *testing.T) {
	disk := guest.Disk(t, "data")
	guest.Run(t, "mkfs.ext4", "-q", disk)
	mount := t.TempDir()
	guest.Run(t, "mount", disk, mount)
	guest.Tell(t, "mounted")
	for i := 0; ; i++ {
		name := filepath.Join(mount, strconv.Itoa(i))
		guest.WriteFile(t, name, content(i))
		guest.WriteFile(t, filepath.Join(mount, "unsynced"), content(i))
		sync(t, name)
		sync(t, mount)
		guest.Tell(t, "synced "+strconv.Itoa(i))
	}
}

// TestRead finds every file up to the last one that was synced, and a filesystem
// whose journal replays to a clean state.
func TestRead(t *testing.T) {
	disk := guest.Disk(t, "data")
	mount := t.TempDir()
	guest.Run(t, "mount", disk, mount)
	last, err := strconv.Atoi(os.Getenv("LAST_SYNCED"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range last + 1 {
		got, err := os.ReadFile(filepath.Join(mount, strconv.Itoa(i)))
		if err != nil || string(got) != content(i) {
			t.Errorf("file %d: %d bytes, %v", i, len(got), err)
		}
	}
	guest.Run(t, "umount", mount)
	guest.Run(t, "e2fsck", "-fn", disk)
}

func content(i int) string {
	return strings.Repeat(strconv.Itoa(i)+" ", 20000)
}

func sync(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fsync(int(f.Fd())); err != nil {
		t.Fatal(err)
	}
}
