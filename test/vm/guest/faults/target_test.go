//go:build linux

package faults_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/test/vm/content"
	"tidemark/test/vm/guest"
)

// failing is a source, and its mirror on a disk that fails.
type failing struct {
	source   string
	disk     *flaky
	target   string
	stateDir string
}

// step gives the source its next content.
func (f *failing) step(t *testing.T, step int) {
	t.Helper()
	write(t, f.source, content.After(step))
}

// fails makes a run that must fail.
func (f *failing) fails(t *testing.T, words []string, flags ...string) {
	t.Helper()
	tidemark(t, f.stateDir, exitError, words, append(append([]string{"mirror"}, flags...), f.source, f.target)...)
}

// follows makes a run that must succeed and leave source and target equal, on the disk
// and not only in memory.
func (f *failing) follows(t *testing.T, words ...string) {
	t.Helper()
	tidemark(t, f.stateDir, exitOK, words, "mirror", f.source, f.target)
	f.equal(t)
}

func (f *failing) equal(t *testing.T) {
	t.Helper()
	guest.WriteFile(t, "/proc/sys/vm/drop_caches", "3")
	if guest.Sum(t, f.source) != guest.Sum(t, f.target) {
		t.Fatal("the mirror differs")
	}
	tidemark(t, f.stateDir, exitOK, nil, "verify", f.target)
}

// newFailing returns one whose target is a device; what is known of it lies elsewhere.
func newFailing(t *testing.T) *failing {
	t.Helper()
	f := &failing{
		source: sourceDevice(t), stateDir: t.TempDir(),
		disk: newFlaky(t, "target", guest.Disk(t, "target"), content.Size),
	}
	f.target = f.disk.path
	return f
}

// A target device that cannot be written to is an error; an update that was committed
// waits until it can.
func TestUnwritableDevice(t *testing.T) {
	f := newFailing(t)
	f.step(t, 0)
	for _, part := range []int64{content.Size, 64 << 10} {
		f.disk.fails(t, failWrites, content.Size-part, part)
		f.fails(t, []string{f.target, "input/output error"})
	}
	f.disk.heals(t)
	f.follows(t)

	for i, part := range []int64{content.Size, content.Size / 2} {
		f.step(t, i+1)
		f.fails(t, []string{f.target, "input/output error"}, "--pre-hook", f.disk.hook(t, failWrites, content.Size-part, part))
		tidemark(t, f.stateDir, exitOK, nil, "status", f.target)
		tidemark(t, f.stateDir, exitError, []string{"waits to be finished"}, "verify", f.target)
		f.fails(t, []string{f.target, "input/output error"})
		f.disk.heals(t)
		f.follows(t, "finished a change")
	}
}

// A target that cannot be read is an error that says where.
func TestUnreadableDevice(t *testing.T) {
	f := newFailing(t)
	f.step(t, 0)
	f.follows(t)
	f.disk.fails(t, failReads, 5<<20, 4096)
	tidemark(t, f.stateDir, exitError, []string{f.target, "offset 5242880", "input/output error"}, "verify", f.target)
	f.disk.heals(t)
	f.equal(t)
}

// What a disk damages or drops without a word is found by verify, and then repaired by
// the next run.
func TestLyingDevice(t *testing.T) {
	f := newFailing(t)
	f.step(t, 0)
	f.follows(t)
	for i, fault := range []fault{damageWrites, dropWrites} {
		t.Run(string(fault), func(t *testing.T) {
			f.step(t, i+1)
			tidemark(t, f.stateDir, exitOK, nil, "mirror", "--pre-hook", f.disk.hook(t, fault, 0, content.Size), f.source, f.target)
			f.disk.heals(t)
			tidemark(t, f.stateDir, exitDifferent, []string{"differ"}, "verify", f.target)
			f.follows(t, "checking it against its checksums")
		})
	}
}

// newFailingFolder returns one whose target is an image that is as long as the source
// already, on a filesystem whose disk fails.
func newFailingFolder(t *testing.T) *failing {
	t.Helper()
	f := &failing{source: sourceDevice(t), disk: newFlaky(t, "target", guest.Disk(t, "target"), 48<<20)}
	mkfs(t, f.disk.path)
	f.stateDir = mount(t, f.disk.path)
	f.target = filepath.Join(f.stateDir, "mirror.img")
	fill(t, f.target, 1, content.Size)
	return f
}

// remount takes the disk away from the filesystem and gives it back healed, as a
// machine that boots again does.
func (f *failing) remount(t *testing.T) {
	t.Helper()
	guest.Run(t, "umount", f.stateDir)
	f.disk.heals(t)
	guest.Run(t, "mount", f.disk.path, f.stateDir)
}

// What could not be written may still be in memory, and must not be taken for written.
func TestUnwritableImage(t *testing.T) {
	f := newFailingFolder(t)
	off := place(t, f.disk.path, "/mirror.img", 7<<20, 64<<10)
	f.step(t, 0)
	f.disk.fails(t, failWrites, off, 64<<10)
	f.fails(t, []string{f.target, "input/output error"}, "--force")
	f.disk.heals(t)
	f.follows(t)
}

// A disk whose filesystem fails during a run leaves the old mirror.
func TestUnwritableFolder(t *testing.T) {
	f := newFailingFolder(t)
	f.step(t, 0)
	tidemark(t, f.stateDir, exitOK, nil, "mirror", "--force", f.source, f.target)
	f.equal(t)
	before := guest.Sum(t, f.target)

	t.Run("fails", func(t *testing.T) {
		f.step(t, 1)
		f.fails(t, []string{f.target}, "--pre-hook", f.disk.hook(t, failWrites, 0, f.disk.size))
		f.remount(t)
		f.isOld(t, before)
		f.follows(t)
	})
	before = guest.Sum(t, f.target)
	t.Run("drops", func(t *testing.T) {
		f.step(t, 2)
		// A disk that says that it has written, and has not, is noticed where the journal is
		// read back from the disk, and otherwise not.
		cmd := exec.Command("tidemark", "mirror", "--pre-hook", f.disk.hook(t, dropWrites, 0, f.disk.size), f.source, f.target)
		cmd.Env = append(os.Environ(), "TIDEMARK_STATE_DIR="+f.stateDir)
		if out, err := cmd.CombinedOutput(); err != nil && !strings.Contains(string(out), "does not read back as it was written") {
			t.Fatalf("%v\n%s", err, out)
		}
		f.remount(t)
		f.isOld(t, before)
		f.follows(t)
	})
	guest.Run(t, "umount", f.stateDir)
	guest.Run(t, "e2fsck", "-fn", f.disk.path)
}

func (f *failing) isOld(t *testing.T, before string) {
	t.Helper()
	tidemark(t, f.stateDir, exitOK, nil, "verify", f.target)
	if guest.Sum(t, f.target) != before {
		t.Fatal("the target is not the old one")
	}
}
