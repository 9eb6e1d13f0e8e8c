package target

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark/linux/mounts/mountstest"
	"tidemark/transfer/origin"
)

const size = 8 << 20 // bytes

// Between the judgement of a target and its opening somebody puts another in its place.
func TestATargetThatWasReplacedIsRefused(t *testing.T) {
	for name, pair := range map[string][2]string{
		"image":  {mountstest.Image(t, size), mountstest.Image(t, size)},
		"device": {mountstest.Disk(t, size), mountstest.Disk(t, size)},
	} {
		link := filepath.Join(t.TempDir(), "target")
		if err := os.Symlink(pair[0], link); err != nil {
			t.Fatal(err)
		}
		found, err := Find(link, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		found.Path = link // as a path without links is replaced
		if err := errors.Join(os.Remove(link), os.Symlink(pair[1], link)); err != nil {
			t.Fatal(err)
		}
		if found.Device {
			found.ID.Path = link
		}
		if err := found.Open(size); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
		if err := found.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A loop device that is detached, or a drive without medium, has not shrunk to nothing.
func TestADeviceWithoutSizeIsNoShrunkenOne(t *testing.T) {
	path := detached(t)
	if _, err := origin.Open(path); !errors.Is(err, origin.ErrNoSize) || !errors.Is(err, origin.ErrSource) || errors.Is(err, ErrRefused) {
		t.Errorf("as a source: %v", err)
	}
	if _, err := Find(path, t.TempDir()); !errors.Is(err, origin.ErrNoSize) || errors.Is(err, ErrRefused) {
		t.Errorf("as a target: %v", err)
	}
}

// detached makes a loop device that nobody else will attach anything to meanwhile.
func detached(t *testing.T) string {
	t.Helper()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	number := 1000 + os.Getpid()%1000
	for unix.IoctlSetInt(int(control.Fd()), unix.LOOP_CTL_ADD, number) == unix.EEXIST {
		number++
	}
	t.Cleanup(func() {
		control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
		if err == nil {
			err = errors.Join(unix.IoctlSetInt(int(control.Fd()), unix.LOOP_CTL_REMOVE, number), control.Close())
		}
		if err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(t.TempDir(), "loop")
	if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(7, uint32(number)))); err != nil {
		t.Fatal(err)
	}
	return path
}
