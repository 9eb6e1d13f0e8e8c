package mounts_test

import (
	"bytes"
	"os"
	"testing"

	"tidemark/linux/mounts"
	"tidemark/linux/mounts/mountstest"
)

func superblock(t *testing.T, path string) mounts.Superblock {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	s, err := mounts.ReadSuperblock(f, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestASuperblockTellsOfOtherDevices(t *testing.T) {
	disk, other, journal := mountstest.Image(t, large), mountstest.Image(t, large), mountstest.Disk(t, small)
	tag := func(path, name string) string {
		return mountstest.Run(t, "blkid", "-c", "/dev/null", "-p", "-o", "value", "-s", name, path)
	}
	if s := superblock(t, disk); s.Type != "" {
		t.Errorf("an empty disk: %+v", s)
	}
	mountstest.Run(t, "mkfs.xfs", "-q", "-f", disk)
	if s := superblock(t, disk); s.Type != "xfs" || s.UUID != tag(disk, "UUID") || s.ExternalLog || s.RealTime {
		t.Errorf("xfs: %+v", s)
	}
	mountstest.Run(t, "mkfs.xfs", "-q", "-f", "-l", "logdev="+other+",size=64m", "-r", "rtdev="+mountstest.Image(t, large), disk)
	if s := superblock(t, disk); s.Type != "xfs" || !s.ExternalLog || !s.RealTime {
		t.Errorf("xfs on three devices: %+v", s)
	}
	if s := superblock(t, other); s.Type != "xfs_external_log" || s.UUID != tag(disk, "UUID") {
		t.Errorf("its log: %+v", s)
	}
	mountstest.Run(t, "wipefs", "-aq", disk)
	mountstest.Run(t, "mkfs.btrfs", "-q", "-f", disk)
	if s := superblock(t, disk); s.Type != "btrfs" || s.UUID != tag(disk, "UUID") || s.Member != tag(disk, "UUID_SUB") || s.Devices != 1 || s.Number != 1 {
		t.Errorf("btrfs: %+v", s)
	}
	mountstest.Run(t, "wipefs", "-aq", disk)
	mountstest.Run(t, "mke2fs", "-q", "-F", "-b", "4096", "-O", "journal_dev", journal)
	mountstest.Run(t, "mkfs.ext4", "-q", "-F", "-b", "4096", disk)
	if s := superblock(t, disk); s.Type != "ext" || s.UUID != tag(disk, "UUID") || s.Journal != "" {
		t.Errorf("ext4: %+v", s)
	}
	mountstest.Run(t, "mkfs.ext4", "-q", "-F", "-b", "4096", "-J", "device="+journal, disk)
	if s := superblock(t, disk); s.Type != "ext" || s.Journal != tag(disk, "EXT_JOURNAL") || s.Journal != tag(journal, "LOGUUID") {
		t.Errorf("ext4 with its journal elsewhere: %+v", s)
	}
}

func FuzzSuperblock(f *testing.F) {
	for _, seed := range []string{"XFSB", "_BHRfS_M", "\x53\xef", "\xfe\xed\xba\xbe\x00\x00\x00\x01\x00\x00\x00\x02"} {
		f.Add([]byte(seed), uint32(0))
		f.Add([]byte(seed), uint32(0x10040))
		f.Add([]byte(seed), uint32(0x438))
	}
	f.Fuzz(func(t *testing.T, data []byte, off uint32) {
		disk := make([]byte, 300<<10)
		copy(disk[off%(300<<10):], data)
		for _, size := range []int{len(disk), len(disk) / 4, 1025, 600} {
			if _, err := mounts.ReadSuperblock(bytes.NewReader(disk[:size]), int64(size)); err != nil {
				t.Error(err)
			}
		}
	})
}
