//go:build linux

package guest

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { Main(m) }

// The guest runs the kernel that the host asked for, with BTF.
func TestKernel(t *testing.T) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	if release != os.Getenv("WANT_KERNEL") {
		t.Fatalf("kernel %s, want %s", release, os.Getenv("WANT_KERNEL"))
	}
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		t.Fatal(err)
	}
	t.Log(release)
}

// Every module that the tests name can be loaded.
func TestModules(t *testing.T) {
	for _, module := range []string{
		"dm-era", "dm-snapshot", "dm-thin-pool", "dm-log-writes", "dm-flakey", "dm-crypt", "nbd", "loop", "zram",
		"null_blk", "scsi_debug", "ext4", "xfs", "btrfs", "sg", "brd", "fuse",
	} {
		t.Run(module, func(t *testing.T) { Modprobe(t, module) })
	}
}

// A write through dm-linear lands at the right place of the disk.
func TestLinear(t *testing.T) {
	disk := Disk(t, "data")
	Modprobe(t, "dm-mod")
	linear := Mapper(t, "line", "0 2048 linear "+disk+" 2048")
	want := bytes.Repeat([]byte("linear!\n"), 64)
	f, err := os.OpenFile(linear, os.O_WRONLY|unix.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(want, 4096); err != nil {
		t.Fatal(err)
	}
	below, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer below.Close()
	got := make([]byte, len(want))
	if _, err := below.ReadAt(got, 1<<20+4096); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("the disk has %q", got[:16])
	}
}

// dm-era counts eras, and thin-provisioning-tools reads its metadata snapshot.
func TestEra(t *testing.T) {
	Modprobe(t, "dm-era")
	meta := Mapper(t, "meta", "0 8192 linear "+Disk(t, "data")+" 0")
	data := Mapper(t, "origin", "0 65536 linear "+Disk(t, "data")+" 8192")
	Run(t, "blkdiscard", "-z", meta)
	era := Mapper(t, "era", "0 65536 era "+meta+" "+data+" 128")
	before := Run(t, "dmsetup", "status", era)
	Run(t, "dmsetup", "message", era, "0", "checkpoint")
	if after := Run(t, "dmsetup", "status", era); after == before {
		t.Fatalf("a checkpoint left the status %s", after)
	}
	Run(t, "dd", "if=/dev/urandom", "of="+era, "bs=64k", "count=1", "seek=3", "conv=fsync")
	Run(t, "dmsetup", "message", era, "0", "checkpoint")
	Run(t, "dmsetup", "message", era, "0", "take_metadata_snap")
	xml := Run(t, "era_invalidate", "--metadata-snapshot", "--written-since", "1", meta)
	Run(t, "dmsetup", "message", era, "0", "drop_metadata_snap")
	if !strings.Contains(xml, `"3"`) {
		t.Fatalf("era_invalidate does not list block 3:\n%s", xml)
	}
}
