package inuse_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/linux/mounts/mountstest"
	"tidemark/transfer/inuse"
)

const size = 64 << 20

// refused checks that path is refused, and that the error names it and who uses it.
func refused(t *testing.T, path, by string) {
	t.Helper()
	err := inuse.Check(path)
	if !errors.Is(err, inuse.ErrInUse) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), by) {
		t.Errorf("%s: %v, want ErrInUse that names %q", path, err, by)
	}
}

func free(t *testing.T, paths ...string) {
	t.Helper()
	for _, path := range paths {
		if err := inuse.Check(path); err != nil {
			t.Error(err)
		}
	}
}

func TestWhoUsesATargetIsNamed(t *testing.T) {
	image := mountstest.Image(t, size)
	free(t, image, image+".missing")
	disk := mountstest.Attach(t, image)
	free(t, disk)
	refused(t, image, "part of "+strings.TrimPrefix(disk, "/dev/"))

	mountstest.Mkfs(t, "ext4", disk)
	dir := mountstest.Mount(t, disk)
	refused(t, image, "mounted: ext4 on "+dir)
	refused(t, disk, "mounted: ext4 on "+dir)
	if err := inuse.Changing(image); !errors.Is(err, inuse.ErrInUse) {
		t.Errorf("a filesystem that is mounted read-write: %v", err)
	}
}

func TestAProgramThatWritesToAnImageIsNamed(t *testing.T) {
	image := mountstest.Image(t, size)
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	refused(t, image, "open for writing by inuse.test (pid ")
}

func TestALockOnADeviceIsSeen(t *testing.T) {
	disk := mountstest.Attach(t, mountstest.Image(t, size))
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		t.Fatal(err)
	}
	refused(t, disk, "locked by inuse.test (pid ")
}

func TestAWriteThatReachesTheSourceIsSeen(t *testing.T) {
	image, other := mountstest.Image(t, size), mountstest.Image(t, size)
	disk, parts := mountstest.Partitioned(t, size, 2)
	loop := mountstest.Attach(t, image)
	for _, c := range []struct {
		target, source string
		want           bool
	}{
		{image, image, true},
		{other, image, false},
		{loop, image, true},
		{disk, image, false},
		{disk, parts[0], true},
		{parts[0], disk, true},
		{parts[0], parts[1], false},
		{image + ".missing", image, false},
	} {
		src, err := block.Open(c.source, block.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		if got, err := inuse.Reaches(c.target, src); got != c.want || err != nil {
			t.Errorf("a write to %s reaches %s: %v, %v; want %v", c.target, c.source, got, err, c.want)
		}
	}
}
