package pairs_test

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"tidemark/linux/mounts/mountstest"
	"tidemark/track/bpf"
	"tidemark/transfer"
	"tidemark/transfer/pairs"
	"tidemark/transfer/parts"
	"tidemark/transfer/restore"
	"tidemark/transfer/target"
)

// spread makes a filesystem on two disks.
func spread(t *testing.T, kind string) (disk, other string, options []string) {
	t.Helper()
	disk, other = mountstest.Disk(t, 320<<20), mountstest.Disk(t, 128<<20)
	switch kind {
	case "btrfs":
		mountstest.Mkfs(t, kind, disk, other)
	case "xfs":
		mountstest.Run(t, "mkfs.xfs", "-q", "-f", "-l", "logdev="+other+",size=64m", disk)
		options = []string{"-o", "logdev=" + other}
	case "ext4":
		mountstest.Run(t, "mke2fs", "-q", "-F", "-b", "4096", "-O", "journal_dev", other)
		mountstest.Run(t, "mkfs.ext4", "-q", "-F", "-b", "4096", "-J", "device="+other, disk)
	}
	return disk, other, options
}

func options(t *testing.T) pairs.Options {
	dir := t.TempDir()
	return pairs.Options{StateDir: dir, Track: bpf.Options{RunDir: filepath.Join(dir, "run")}, Tracker: "scan", ForceFreeze: true}
}

// Neither half of a filesystem is copied alone, in use or not, whichever half it is.
func TestAPartOfAFilesystemIsRefused(t *testing.T) {
	for _, kind := range []string{"btrfs", "xfs", "ext4"} {
		t.Run(kind, func(t *testing.T) {
			disk, other, mount := spread(t, kind)
			o := options(t)
			target := filepath.Join(t.TempDir(), "copy.img")
			refused := func(t *testing.T) {
				for _, half := range [][2]string{{disk, other}, {other, disk}} {
					for name, run := range map[string]func() error{
						"mirror": func() error {
							_, err := pairs.Mirror(t.Context(), []pairs.Pair{{Source: half[0], Target: target}}, o)
							return err
						},
						"plan": func() error {
							_, err := pairs.Plan(t.Context(), []pairs.Pair{{Source: half[0], Target: target}}, o)
							return err
						},
					} {
						if err := run(); !errors.Is(err, parts.ErrPart) || !strings.Contains(err.Error(), half[1]) {
							t.Errorf("%s of %s without %s: %v", name, half[0], half[1], err)
						}
					}
				}
				both := []pairs.Pair{{Source: disk, Target: target}, {Source: other, Target: target + ".2"}}
				if _, err := pairs.Plan(t.Context(), both, o); err != nil {
					t.Errorf("both: %v", err)
				}
			}
			t.Run("unmounted", refused)
			mountstest.Mount(t, disk, mount...)
			t.Run("mounted", refused)
			if _, err := os.Stat(target); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the target: %v", err)
			}
		})
	}
}

// What --whole copies can be mounted from the copies alone, and is found again.
func TestWholeCopiesTheOtherDevicesBesideTheFirst(t *testing.T) {
	disk, other, mount := spread(t, "ext4")
	dir := mountstest.Mount(t, disk, mount...)
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := options(t)
	o.Whole = true
	target := filepath.Join(t.TempDir(), "data.img")
	want := strings.TrimSuffix(target, ".img") + "-" + filepath.Base(other) + ".img"
	for range 2 {
		reports, err := pairs.Mirror(t.Context(), []pairs.Pair{{Source: disk, Target: target}}, o)
		if err != nil || len(reports) != 2 || reports[1].Source != other || reports[1].Target != want {
			t.Fatalf("%+v, %v", reports, err)
		}
	}
	data, journal := mountstest.Attach(t, target), mountstest.Attach(t, want)
	mountstest.Run(t, "e2fsck", "-f", "-n", "-j", journal, data)
	if out := mountstest.Run(t, "debugfs", "-R", "cat /file", data); !strings.Contains(out, "content") {
		t.Errorf("the file: %s", out)
	}
}

// A device that is added is judged as one that is named.
func TestWholeAddsNoHalfRestoredDevice(t *testing.T) {
	disk, other, _ := spread(t, "ext4")
	o := options(t)
	o.Whole = true
	at, err := target.Find(other, o.StateDir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(at.Folder, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(at.Folder, restore.RecordFile), nil, 0o600); err != nil { // of a restore that was cut off
		t.Fatal(err)
	}
	_, err = pairs.Mirror(t.Context(), []pairs.Pair{{Source: disk, Target: filepath.Join(t.TempDir(), "data.img")}}, o)
	if !errors.Is(err, restore.ErrHalf) {
		t.Error(err)
	}
}

// The name that a device has today is not the one of its mirror.
func TestWholeFindsTheMirrorOfADeviceUnderAnotherName(t *testing.T) {
	disk, other, _ := spread(t, "btrfs")
	o := options(t)
	dir := t.TempDir()
	before := filepath.Join(dir, "data-old.img")
	both := []pairs.Pair{{Source: disk, Target: filepath.Join(dir, "data.img")}, {Source: other, Target: before}}
	if _, err := pairs.Mirror(t.Context(), both, o); err != nil {
		t.Fatal(err)
	}
	o.Whole = true
	reports, err := pairs.Mirror(t.Context(), both[:1], o)
	if err != nil || len(reports) != 2 || reports[1].Target != before {
		t.Errorf("%+v, %v", reports, err)
	}
	device := mountstest.Disk(t, 320<<20)
	if _, err := pairs.Plan(t.Context(), []pairs.Pair{{Source: disk, Target: device}}, o); !errors.Is(err, target.ErrRefused) || !strings.Contains(err.Error(), "--pair") {
		t.Errorf("beside a device: %v", err)
	}
}

func TestAPartIsCopiedWhenForcedAndSaysSo(t *testing.T) {
	disk, other, _ := spread(t, "btrfs")
	o := options(t)
	o.ForcePart = true
	var told []string
	o.Progress = func(e transfer.Event) { told = append(told, e.Text) }
	if _, err := pairs.Mirror(t.Context(), []pairs.Pair{{Source: disk, Target: filepath.Join(t.TempDir(), "a.img")}}, o); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(told, func(s string) bool { return strings.Contains(s, "WARNING") && strings.Contains(s, other) }) {
		t.Errorf("told: %q", told)
	}
}

// A btrfs of one device that has a copy on another disk lies on one device alone, and so
// does each of two partitions.
func TestWhatLiesOnOneDeviceIsNoPart(t *testing.T) {
	disk, parts := mountstest.Partitioned(t, 300<<20, 2)
	image := mountstest.Image(t, 140<<20)
	mountstest.Mkfs(t, "btrfs", parts[0])
	mountstest.Mkfs(t, "ext4", parts[1])
	o := options(t)
	if _, err := pairs.Mirror(t.Context(), []pairs.Pair{{Source: parts[0], Target: mountstest.Attach(t, mountstest.Image(t, 160<<20))}}, o); err != nil {
		t.Fatal(err)
	}
	mountstest.Mount(t, parts[1])
	for _, source := range []string{disk, parts[0], parts[1], image} {
		if _, err := pairs.Plan(t.Context(), []pairs.Pair{{Source: source, Target: filepath.Join(t.TempDir(), "x.img")}}, o); err != nil {
			t.Errorf("%s: %v", source, err)
		}
	}
}

// Images are told from a filesystem that is whole, though nothing finds the other image.
func TestAnImageOfAPartIsRefused(t *testing.T) {
	disk, other, _ := spread(t, "btrfs")
	o := options(t)
	dir := t.TempDir()
	images := []pairs.Pair{{Source: disk, Target: filepath.Join(dir, "a.img")}, {Source: other, Target: filepath.Join(dir, "b.img")}}
	if _, err := pairs.Mirror(t.Context(), images, o); err != nil {
		t.Fatal(err)
	}
	again := []pairs.Pair{{Source: images[0].Target, Target: filepath.Join(dir, "c.img")}, {Source: images[1].Target, Target: filepath.Join(dir, "d.img")}}
	if _, err := pairs.Plan(t.Context(), again[:1], o); !errors.Is(err, parts.ErrPart) {
		t.Errorf("one: %v", err)
	}
	if _, err := pairs.Plan(t.Context(), again, o); err != nil {
		t.Errorf("both: %v", err)
	}
}

func TestADeviceThatIsAddedDuringARunIsNoticed(t *testing.T) {
	disk, other := mountstest.Disk(t, 320<<20), mountstest.Disk(t, 128<<20)
	mountstest.Mkfs(t, "btrfs", disk)
	dir := mountstest.Mount(t, disk)
	o := options(t)
	add := sync.OnceFunc(func() { mountstest.Run(t, "btrfs", "device", "add", "-f", other, dir) })
	o.Progress = func(e transfer.Event) {
		if e.Phase != "" {
			add()
		}
	}
	_, err := pairs.Mirror(t.Context(), []pairs.Pair{{Source: disk, Target: filepath.Join(t.TempDir(), "x.img")}}, o)
	if !errors.Is(err, parts.ErrPart) || !strings.Contains(err.Error(), other) {
		t.Error(err)
	}
}

// Members that are not assembled are found by what they say of each other, whatever name the
// source was given.
func TestAMemberThatIsNotAssembledIsRefused(t *testing.T) {
	disk, other := mountstest.Disk(t, 8<<20), mountstest.Disk(t, 8<<20)
	for i, path := range []string{disk, other} {
		if err := os.WriteFile(path, raidMember(byte(i)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(disk, link); err != nil {
		t.Fatal(err)
	}
	o, target := options(t), filepath.Join(t.TempDir(), "x.img")
	if _, err := pairs.Plan(t.Context(), []pairs.Pair{{Source: link, Target: target}}, o); !errors.Is(err, parts.ErrPart) || !strings.Contains(err.Error(), other) {
		t.Errorf("one: %v", err)
	}
	both := []pairs.Pair{{Source: link, Target: target}, {Source: other, Target: target + ".2"}}
	if _, err := pairs.Plan(t.Context(), both, o); err != nil {
		t.Errorf("both: %v", err)
	}
}

// raidMember is the beginning of a member of a RAID1 of two (struct mdp_superblock_1 in
// include/uapi/linux/raid/md_p.h, format 1.1), as far as blkid looks.
func raidMember(number byte) []byte {
	le := binary.LittleEndian
	b := make([]byte, 4096)
	le.PutUint32(b, 0xa92b4efc)
	le.PutUint32(b[4:], 1) // major version
	copy(b[16:], "set of two disks")
	le.PutUint32(b[72:], 1)     // level
	le.PutUint64(b[80:], 8192)  // sectors used of each
	le.PutUint32(b[92:], 2)     // disks
	le.PutUint64(b[128:], 2048) // where data begins
	le.PutUint64(b[136:], 8192) // sectors of data
	le.PutUint32(b[160:], uint32(number))
	copy(b[168:], "member of a set ")
	b[183] = '0' + number
	return b
}

// A disk has all of what lies on its partitions.
func TestADiskIsMoreThanAPartitionOfIt(t *testing.T) {
	disk, pieces := mountstest.Partitioned(t, 300<<20, 2)
	mountstest.Mkfs(t, "btrfs", pieces...)
	o := options(t)
	plan := func(source string) error {
		_, err := pairs.Plan(t.Context(), []pairs.Pair{{Source: source, Target: filepath.Join(t.TempDir(), "x.img")}}, o)
		return err
	}
	for _, state := range []string{"unmounted", "mounted"} {
		if err := plan(disk); err != nil {
			t.Errorf("%s: %v", state, err)
		}
		if err := plan(pieces[1]); !errors.Is(err, parts.ErrPart) || !strings.Contains(err.Error(), pieces[0]) {
			t.Errorf("%s: %v", state, err)
		}
		if state == "unmounted" {
			mountstest.Mount(t, pieces[1])
		}
	}
}
