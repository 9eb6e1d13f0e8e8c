//go:build linux

package faults_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"tidemark/test/vm/guest"
)

// unreadable is a mounted source with a block that can be made unreadable, and its
// mirror. The source is a loop device over the disk that fails: dm-flakey is told to
// fail by another table, and a device whose table was replaced has lost its marks.
type unreadable struct {
	disk     *flaky
	path     string // of the source
	dir      string // where the source is mounted
	file     string // that has the block
	off      int64  // of the block on the device, bytes
	stateDir string
	image    string
}

// A source that cannot be read is an error that says where; the mirror stays the old
// one, nothing stays frozen, and tracking goes on. When the fault has gone, so does the
// mirror.
func TestUnreadableSource(t *testing.T) {
	u := newUnreadable(t)
	words := []string{u.path, fmt.Sprintf("4096 bytes at offset %d", u.off), "input/output error"}
	u.disk.fails(t, failReads, u.off, 4096)
	tidemark(t, u.stateDir, exitError, words, "mirror", u.path, u.image)
	u.recovers(t, "resume")

	t.Run("while it is in use", func(t *testing.T) {
		fill(t, u.file, 2, 256<<10)
		u.disk.fails(t, failReads, u.off, 4096)
		u.failsAsOld(t, words)
		u.recovers(t, "incremental")
	})
	t.Run("while it is frozen", func(t *testing.T) {
		fill(t, filepath.Join(u.dir, "other"), 3, 64<<10)
		hook := fmt.Sprintf("dd if=/dev/zero of=%s bs=4096 seek=20 count=1 conv=notrunc && sync && %s",
			u.file, u.disk.hook(t, failReads, u.off, 4096))
		u.failsAsOld(t, words, "--pre-hook", hook)
		u.recovers(t, "incremental")
	})
	t.Run("while all of it is read frozen", func(t *testing.T) {
		fill(t, u.file, 4, 256<<10)
		u.disk.fails(t, failReads, u.off, 4096)
		u.failsAsOld(t, words, "--tracker", "scan", "--force-freeze")
		u.recovers(t, "incremental")
	})
	t.Run("at rest", func(t *testing.T) {
		guest.Run(t, "umount", u.dir)
		mirrored(t, u.stateDir, "incremental", u.path, u.image)
		if guest.Sum(t, u.path) != guest.Sum(t, u.image) {
			t.Error("the mirror differs")
		}
	})
}

func newUnreadable(t *testing.T) *unreadable {
	t.Helper()
	tmp := t.TempDir()
	u := &unreadable{
		disk:     newFlaky(t, "flaky", guest.Disk(t, "source"), 32<<20),
		stateDir: tmp, image: filepath.Join(tmp, "mirror.img"),
	}
	u.path = guest.Loop(t, u.disk.path, "--direct-io=on")
	mkfs(t, u.path)
	u.dir = mount(t, u.path)
	t.Cleanup(func() { guest.Run(t, "tidemark", "track", "stop", u.path) })
	u.file = filepath.Join(u.dir, "bad")
	fill(t, u.file, 1, 256<<10)
	u.off = place(t, u.path, "/bad", 20*4096, 4096)
	return u
}

// failsAsOld makes a run that must fail and change nothing.
func (u *unreadable) failsAsOld(t *testing.T, words []string, flags ...string) {
	t.Helper()
	before := guest.Sum(t, u.image)
	tidemark(t, u.stateDir, exitError, words, append(append([]string{"mirror"}, flags...), u.path, u.image)...)
	u.disk.heals(t)
	fill(t, filepath.Join(u.dir, "after"), 5, 4096) // would wait for ever on a frozen filesystem
	if guest.Sum(t, u.image) != before {
		t.Fatal("the target is not the old one")
	}
	tidemark(t, u.stateDir, exitOK, nil, "verify", u.image)
}

// recovers makes the run after the fault, which must not have to read everything.
func (u *unreadable) recovers(t *testing.T, modes string) {
	t.Helper()
	u.disk.heals(t)
	mirrored(t, u.stateDir, modes, u.path, u.image)
	guest.Run(t, "e2fsck", "-fn", u.image)
}
