//go:build linux

package snapshot_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidemark/snapshot"
	"tidemark/test/vm/guest"
	"tidemark/test/vm/guest/instant"
)

// group makes a volume group with one volume, and returns its path.
func group(t *testing.T, size string) string {
	t.Helper()
	guest.Run(t, "dd", "if=/dev/zero", "of="+guest.Disk(t, "data"), "bs=1M", "count=2", "status=none", "conv=fsync")
	guest.Run(t, "vgcreate", "--quiet", "vg", guest.Disk(t, "data"))
	t.Cleanup(func() { guest.Run(t, "vgremove", "--quiet", "--force", "--force", "--yes", "vg") })
	guest.Run(t, "lvcreate", "--quiet", "--yes", "--size", size, "--name", "lv", "vg")
	return "/dev/vg/lv"
}

// lvm runs a command of lvm2's, which has to be content: it says nothing on stderr.
func lvm(t *testing.T, command string, args ...string) string {
	t.Helper()
	var said strings.Builder
	cmd := exec.Command(command, append(args, "--config", "activation{monitoring=0} global{use_lvmpolld=0}")...) // there are no daemons
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil || said.Len() > 0 {
		t.Errorf("%s %v: %v: %s", command, args, err, said.String())
	}
	return string(out)
}

// LVM below an origin goes on to work before, while and after there is a snapshot of ours, and moves
// or snapshots the volume as if there was none; neither sees anything of the other's.
func TestAnOriginOnALogicalVolume(t *testing.T) {
	lv := group(t, "44M")
	name, at := "over", t.TempDir()
	table := fmt.Sprintf("0 %d linear %s 0", sectors, lv)
	dev := guest.Mapper(t, name, table)
	mkfs(t, "ext4", dev)
	guest.Run(t, "mount", dev, at)
	t.Cleanup(func() { guest.Run(t, "umount", at) })
	stop := instant.Load(t, at)
	defer stop()
	theirs := func() {
		t.Helper()
		lvm(t, "lvs")
		lvm(t, "pvs")
		lvm(t, "lvcreate", "--quiet", "--quiet", "--snapshot", "--size", "8M", "--name", "theirs", lv)
		if out, err := exec.Command("lvremove", "--quiet", "--yes", "vg/lv").CombinedOutput(); err == nil || !strings.Contains(string(out), "is used by another device") {
			t.Errorf("lvremove of a volume in use: %v: %s", err, out)
		}
		lvm(t, "lvremove", "--quiet", "--quiet", "--yes", "vg/theirs")
		before := guest.Run(t, "dmsetup", "table", "vg-lv")
		pv := guest.Disk(t, "data")
		move := []string{"--alloc", "anywhere", "--interval", "1", pv + ":0-10", pv + ":11-30"}
		if strings.HasSuffix(before, " 92160") { // it begins in the second half
			move[4], move[5] = move[5], move[4]
		}
		lvm(t, "pvmove", move...)
		if guest.Run(t, "dmsetup", "table", "vg-lv") == before {
			t.Error("nothing was moved")
		}
		lvm(t, "lvs", "--all")
	}
	before := guest.Run(t, "dmsetup", "table", name)
	theirs()
	s, held := take(t, snapshot.Request{Devices: []snapshot.Device{{Path: dev, Size: 14 << 20}}})
	theirs()
	settle(t, name)
	instant.Compare(t, held[0], instant.MustRead(t, s.Image(s.Volumes[0])))
	check(t, "ext4", s.Image(s.Volumes[0]))
	destroy(t, s)
	if now := guest.Run(t, "dmsetup", "table", name); now != before {
		t.Errorf("the table was %s, and is %s", before, now)
	}
	theirs()
	stop()
	bare(t, at)
}

// Several logical volumes are of one instant in snapshots that lvm2 makes, where the kernel lets it; all
// or none are there after a command that is killed, and LVM removes none that is not ours.
func TestLogicalVolumesOfOneInstant(t *testing.T) {
	devs, folders := []string{group(t, "24M"), "/dev/vg/with-dash"}, []string{t.TempDir(), t.TempDir()}
	lvm(t, "lvcreate", "--quiet", "--yes", "--size", "24M", "--name", "with-dash", "vg")
	for i, dev := range devs {
		mkfs(t, "ext4", dev)
		guest.Run(t, "mount", dev, folders[i])
		t.Cleanup(func() { _ = exec.Command("umount", folders[i]).Run() }) // where the test did not
	}
	refused(t, "of all devices, or of none", "--store", devs[0]+"=lvm", devs[0], devs[1])
	args := append([]string{"snapshot", "create", "--max-freeze", "1m", "--store", "lvm", "--name", "both", "--size", "8M"}, devs...)
	refused(t, "has 76 MiB free", append(args[2:8:8], "--size", "40M", devs[0], devs[1])...)
	stop := instant.Count(t, folders...)
	defer stop()
	counts := guest.Kernel(t, 6, 8)
	if !counts {
		refused(t, "Linux before 6.8", args[2:]...)
		stop()
		for _, at := range folders {
			guest.Run(t, "umount", at)
		}
	}
	began := time.Now()
	images := strings.Fields(guest.Run(t, "tidemark", args...))
	took := time.Since(began)
	for i := range 2 {
		if n := []int{counted(t, images[0], false), counted(t, images[1], false)}; n[0] < n[1] || n[1] < n[0]-1 || n[1] == 0 {
			t.Errorf("counters %v", n)
		}
		guest.Run(t, "tidemark", "snapshot", "grow", "both", "vg-lv", "--size", fmt.Sprint(12+4*i, "M"))
		for _, at := range folders[:map[bool]int{true: 2}[counts]] {
			guest.Run(t, "dd", "if=/dev/urandom", "of="+at+"/more", "bs=64k", "count=20", "conv=fsync", "status=none")
		}
	}
	if out := guest.Run(t, "tidemark", "snapshot", "status", "both"); strings.Count(out, " ok") != 2 {
		t.Error(out)
	}
	guest.Run(t, "tidemark", "snapshot", "destroy", "both")
	for i := range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), took*time.Duration(2+i)/5)
		_ = exec.CommandContext(ctx, "tidemark", args...).Run()
		cancel()
		guest.Run(t, "tidemark", "snapshot", "repair")
		if _, err := snapshot.Find(options, "both"); err == nil {
			guest.Run(t, "tidemark", "snapshot", "destroy", "both")
		}
		if out := strings.Fields(lvm(t, "lvs", "--noheadings", "-o", "lv_name", "vg")); len(out) != 2 {
			t.Errorf("volumes %v", out)
		}
	}
	bare(t)
	stop()
	for i, dev := range devs {
		_ = exec.Command("umount", folders[i]).Run()
		guest.Run(t, "e2fsck", "-fn", dev)
	}
}

// A device that a volume group lies on is refused: lvm2 would find the group once more in the image.
func TestAnOriginBelowLVM(t *testing.T) {
	dev := guest.Mapper(t, "pv", fmt.Sprintf("0 %d linear %s 16384", sectors, guest.Disk(t, "data")))
	guest.Run(t, "dd", "if=/dev/zero", "of="+dev, "bs=1M", "count=2", "status=none", "conv=fsync")
	guest.Run(t, "vgcreate", "--quiet", "vg", dev)
	t.Cleanup(func() { guest.Run(t, "vgremove", "--quiet", "--force", "--force", "--yes", "vg") })
	guest.Run(t, "lvcreate", "--quiet", "--yes", "--size", "16M", "--name", "lv", "vg")
	refused(t, "LVM2_member", "--store", "/stores-pv", dev)
	lvm(t, "pvs")
	lvm(t, "lvcreate", "--quiet", "--yes", "--size", "4M", "--name", "other", "vg")
	bare(t)
}

// A LUKS device whose key is in the kernel's keyring is refused with what helps, and with its key in
// the table it is as any other.
func TestAnOriginWithLUKS(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key")
	guest.WriteFile(t, key, "a long enough passphrase")
	disk := guest.Mapper(t, "raw", fmt.Sprintf("0 %d linear %s 0", sectors, guest.Disk(t, "data")))
	guest.Run(t, "cryptsetup", "luksFormat", "-q", "--type", "luks2", "--luks2-metadata-size", "16k", "--luks2-keyslots-size", "256k",
		"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", key, disk)
	guest.Run(t, "cryptsetup", "open", "--key-file", key, disk, "luks")
	t.Cleanup(func() { guest.Run(t, "cryptsetup", "close", "luks") })
	name, dev, at := "luks", "/dev/mapper/luks", t.TempDir()
	mkfs(t, "ext4", dev)
	guest.Run(t, "mount", dev, at)
	t.Cleanup(func() { guest.Run(t, "umount", at) })
	remedy := "cryptsetup refresh --disable-keyring luks"
	if out, err := exec.Command("tidemark", "snapshot", "create", dev).CombinedOutput(); err == nil || !strings.Contains(string(out), remedy) {
		t.Errorf("%v: %s", err, out)
	}
	bare(t, at)
	guest.Run(t, "cryptsetup", append(strings.Fields(remedy)[1:], "--key-file", key)...)
	refused(t, "also one in LUKS", "--persistent", dev)
	before := guest.Run(t, "dmsetup", "table", "--showkeys", name)
	stop := instant.Load(t, at)
	defer stop()
	s, held := take(t, snapshot.Request{Devices: []snapshot.Device{{Path: dev, Size: 14 << 20}}})
	settle(t, name)
	instant.Compare(t, held[0], instant.MustRead(t, s.Image(s.Volumes[0])))
	check(t, "ext4", s.Image(s.Volumes[0]))
	destroy(t, s)
	settle(t, name)
	stop()
	if now := guest.Run(t, "dmsetup", "table", "--showkeys", name); now != before {
		t.Error("the table is another one")
	}
	bare(t, at)
	record, err := os.ReadDir(options.StateDir + "/snapshots")
	if err != nil || len(record) > 0 {
		t.Errorf("%v, %v", record, err)
	}
}

// A filesystem on two devices is refused, also with both: a Btrfs would find its devices a second time,
// and an ext4 with its journal elsewhere would wait for that.
func TestAnOriginInPart(t *testing.T) {
	var devs, both []string
	for i := range 2 {
		devs = append(devs, guest.Mapper(t, fmt.Sprint("half", i), fmt.Sprintf("0 %d linear %s %d", sectors, guest.Disk(t, "data"), 16384+i*sectors)))
		both = append(both, "--store", fmt.Sprintf("%s=/stores-half%d", devs[i], i))
	}
	both = append(both, devs...)
	at := t.TempDir()
	mkfs(t, "btrfs", devs[0])
	guest.Run(t, "mount", devs[0], at)
	guest.Run(t, "btrfs", "device", "add", "-f", devs[1], at)
	refused(t, "lies on 2 devices", both...)
	guest.Run(t, "umount", at)
	for _, dev := range devs {
		guest.Run(t, "wipefs", "--all", "--quiet", dev)
	}
	guest.Run(t, "mke2fs", "-q", "-F", "-b", "4096", "-O", "journal_dev", devs[1])
	guest.Run(t, "mkfs.ext4", "-q", "-F", "-b", "4096", "-J", "device="+devs[1], devs[0])
	guest.Run(t, "mount", devs[0], at)
	refused(t, "lies on 2 devices", both...)
	bare(t)
	guest.Run(t, "umount", at)
}

// A multipath device is refused, whichever way it takes requests: the kernel itself does not let a table
// of snapshots take the place of its own.
func TestAMultipathDevice(t *testing.T) {
	guest.Modprobe(t, "dm-multipath", "dm-round-robin")
	path := guest.Disk(t, "store")
	for _, mode := range []string{"mq", "bio"} {
		size := guest.Sectors(t, path)
		guest.Run(t, "dmsetup", "create", "paths", "--table", fmt.Sprintf("0 %s multipath 2 queue_mode %s 0 1 1 round-robin 0 1 1 %s 1000", size, mode, path))
		refused(t, "kpartx", "--store", "/stores-paths", "/dev/mapper/paths")
		err := exec.Command("dmsetup", "load", "paths", "--table", fmt.Sprintf("0 %s snapshot-origin %s", size, path)).Run()
		if err == nil {
			t.Error("the kernel lets a table of snapshots take its place")
		}
		guest.Run(t, "dmsetup", "remove", "--retry", "paths")
	}
	bare(t)
}
