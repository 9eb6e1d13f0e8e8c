package vm

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// otherKernels are the subtests of TestLiveMirror that the other kernel does: each has
// every filesystem and every kind of device, and the other one the other pairs. What does not depend on
// the kernel is done in the newer.
func otherKernels(k Kernel) string {
	return k.skipped(
		"TestAPartOfAStackIsNoSource|TestLiveMirror/(ext4_on_virtio-scsi|xfs_on_virtio-blk|btrfs_on_virtio-blk|ext4_on_dm-linear|ext4_on_dm-crypt)",
		"TestTrackingWhereLittleMemoryMayBeLocked|TestLiveMirror/(ext4_on_virtio-blk|xfs_on_dm-linear|btrfs_on_dm-crypt|ext4_on_dm-thin)")
}

// Live mirrors of busy filesystems work in every kernel.
func TestMirror(t *testing.T) {
	t.Parallel()
	program := Build(t, "tidemark/test/vm/guest/mirror")
	command := BuildCommand(t, "tidemark/cmd/tidemark")
	vfat := filepath.Join(t.TempDir(), "vfat.img")
	if out, err := exec.Command("mkfs.vfat", "-C", vfat, "2048").CombinedOutput(); err != nil {
		t.Fatalf("%v (scripts/setup installs it): %s", err, out)
	}
	for _, kernel := range oldestAndNewest() {
		t.Run(string(kernel), func(t *testing.T) {
			t.Parallel()
			disks := []Disk{
				NewDisk(t, "data", 128<<20),
				NewDisk(t, "scsi", 64<<20).on(VirtioSCSI),
				NewDisk(t, "large", 304<<20), // XFS takes no less than 300 MB
			}
			r := Run(t, Config{
				Kernel: kernel, MemMB: 1024, Timeout: busyTimeout, Disks: disks, ScratchMB: 2048,
				Skip:    otherKernels(kernel),
				Modules: []string{"loop"},
				Files:   map[string]string{"/bin/tidemark": command, "/vfat.img": vfat},
			}, program)
			checkVfat(t, r.Files)
			t.Logf("boot %v, all %v, %d tests", r.Boot, r.Total, r.Tests)
		})
	}
}

// checkVfat checks the copies of a vfat that a guest has left, by the program that guests
// have not. In one that was mounted read-write, only that it was is wrong.
func checkVfat(t *testing.T, dir string) {
	t.Helper()
	for name, want := range map[string]string{"read-only.vfat": "", "read-write.vfat": "Dirty bit is set"} {
		out, err := exec.Command("fsck.vfat", "-n", filepath.Join(dir, name)).CombinedOutput()
		t.Logf("%s: %v\n%s", name, err, out)
		if (err == nil) != (want == "") || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}
