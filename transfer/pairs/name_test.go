package pairs_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/linux/mounts/mountstest"
	"tidemark/transfer/pairs"
)

func TestASourceIsFoundByItsTagAndItsMountPoint(t *testing.T) {
	disk := mountstest.Disk(t, 16<<20)
	mountstest.Run(t, "mkfs.ext4", "-q", "-F", "-L", "of a test", disk)
	dir := mountstest.Mount(t, disk)
	for _, name := range []string{"LABEL=of a test", dir, dir + "/", disk} {
		if path, err := pairs.SourcePath(t.Context(), name); err != nil || path != disk {
			t.Errorf("%s: %s, %v", name, path, err)
		}
	}
	folder := filepath.Join(dir, "folder")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	if path, err := pairs.SourcePath(t.Context(), folder); err == nil || !strings.Contains(err.Error(), disk) || !strings.Contains(err.Error(), dir) {
		t.Errorf("a folder: %s, %v", path, err)
	}
	for _, name := range []string{"LABEL=of none", "LABEL="} {
		if path, err := pairs.TargetPath(t.Context(), name); !errors.Is(err, pairs.ErrName) {
			t.Errorf("%s: %s, %v", name, path, err)
		}
	}
	if path, err := pairs.TargetPath(t.Context(), dir); err != nil || path != dir {
		t.Errorf("a folder as target: %s, %v", path, err)
	}
}

// A copy on a disk beside its original has the same UUID.
func TestATagThatTwoDevicesAnswerToIsRefused(t *testing.T) {
	disk, other := mountstest.Disk(t, 16<<20), mountstest.Disk(t, 16<<20)
	for _, d := range []string{disk, other} {
		mountstest.Run(t, "mkfs.ext4", "-q", "-F", "-L", "twice", d)
	}
	_, err := pairs.SourcePath(t.Context(), "LABEL=twice")
	if !errors.Is(err, pairs.ErrAmbiguous) || !strings.Contains(err.Error(), disk) || !strings.Contains(err.Error(), other) {
		t.Error(err)
	}
}

// The first device of a btrfs stays the first, whichever of them it is mounted by.
func TestABtrfsIsNamedAfterItsFirstDevice(t *testing.T) {
	first, second := mountstest.Disk(t, 128<<20), mountstest.Disk(t, 128<<20)
	mountstest.Mkfs(t, "btrfs", first, second)
	dir := mountstest.Mount(t, second)
	if path, err := pairs.SourcePath(t.Context(), dir); err != nil || path != first {
		t.Errorf("%s, %v", path, err)
	}
}

func TestAPairIsSplitBehindItsTag(t *testing.T) {
	for text, want := range map[string]pairs.Pair{
		"/dev/vdb1=/backup/b.img":        {Source: "/dev/vdb1", Target: "/backup/b.img"},
		"LABEL=srv=/backup/b.img":        {Source: "LABEL=srv", Target: "/backup/b.img"},
		"UUID=12-AB=LABEL=copy":          {Source: "UUID=12-AB", Target: "LABEL=copy"},
		"/dev/vdb1=PARTUUID=1-2":         {Source: "/dev/vdb1", Target: "PARTUUID=1-2"},
		"/dev/vdb1=/backup/a=b.img":      {Source: "/dev/vdb1", Target: "/backup/a=b.img"},
		"LABEL=/backup/b.img":            {},
		"LABEL==/backup/b.img":           {},
		"/dev/vdb1=":                     {},
		"=x":                             {},
		"/dev/disk/by-label/x=/backup/b": {Source: "/dev/disk/by-label/x", Target: "/backup/b"},
	} {
		if got, err := pairs.ParsePair(text); got != want || (err != nil) != (want == pairs.Pair{}) {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
}
