package names_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/linux/mounts/mountstest"
	"tidemark/transfer/names"
)

func TestASourceIsFoundByItsTagAndItsMountPoint(t *testing.T) {
	disk := mountstest.Disk(t, 16<<20)
	mountstest.Run(t, "mkfs.ext4", "-q", "-F", "-L", "of a test", disk)
	dir := mountstest.Mount(t, disk)
	for _, name := range []string{"LABEL=of a test", dir, dir + "/", disk} {
		if path, err := names.Source(t.Context(), name); err != nil || path != disk {
			t.Errorf("%s: %s, %v", name, path, err)
		}
	}
	folder := filepath.Join(dir, "folder")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	if path, err := names.Source(t.Context(), folder); err == nil || !strings.Contains(err.Error(), disk) || !strings.Contains(err.Error(), dir) {
		t.Errorf("a folder: %s, %v", path, err)
	}
	for _, name := range []string{"LABEL=of none", "LABEL="} {
		if path, err := names.Target(t.Context(), name); !errors.Is(err, names.ErrNone) {
			t.Errorf("%s: %s, %v", name, path, err)
		}
	}
	if path, err := names.Target(t.Context(), dir); err != nil || path != dir {
		t.Errorf("a folder as target: %s, %v", path, err)
	}
}

// A copy on a disk beside its original has the same UUID.
func TestATagThatTwoDevicesAnswerToIsRefused(t *testing.T) {
	disk, other := mountstest.Disk(t, 16<<20), mountstest.Disk(t, 16<<20)
	for _, d := range []string{disk, other} {
		mountstest.Run(t, "mkfs.ext4", "-q", "-F", "-L", "twice", d)
	}
	_, err := names.Source(t.Context(), "LABEL=twice")
	if !errors.Is(err, names.ErrAmbiguous) || !strings.Contains(err.Error(), disk) || !strings.Contains(err.Error(), other) {
		t.Error(err)
	}
}

// The first device of a btrfs stays the first, whichever of them it is mounted by.
func TestABtrfsIsNamedAfterItsFirstDevice(t *testing.T) {
	first, second := mountstest.Disk(t, 128<<20), mountstest.Disk(t, 128<<20)
	mountstest.Mkfs(t, "btrfs", first, second)
	dir := mountstest.Mount(t, second)
	if path, err := names.Source(t.Context(), dir); err != nil || path != first {
		t.Errorf("%s, %v", path, err)
	}
}
