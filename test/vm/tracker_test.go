package vm

import (
	"testing"
	"time"
)

// busyTimeout is for guests that take about a minute each when the machine does nothing else.
const busyTimeout = 15 * time.Minute

// copiedByTheOther are the kinds of disks that the other kernel copies while they are in use; each has
// some with requests and some without. That every change is seen is shown on both for all kinds.
func copiedByTheOther(k Kernel) string {
	return k.skipped(
		"^TestCopyWhileInUse$/^(virtio-scsi|nvme_multipath|dm-crypt|dm-era|dm-delay|brd|md_raid0|md_raid5)$|^TestDiscardsOfManyRanges$/^xfs$",
		"^TestCopyWhileInUse$/^(virtio-blk|nvme|dm-linear|dm-thin|dm-snapshot-origin|zram|null_blk|md_raid1)$|^TestDiscardsOfManyRanges$/^btrfs$")
}

// The tracker sees every change of block devices of real kernels.
func TestTracker(t *testing.T) {
	t.Parallel()
	program := Build(t, "tidemark/test/vm/guest/tracker")
	for _, kernel := range oldestAndNewest() {
		t.Run(string(kernel), func(t *testing.T) {
			t.Parallel()
			disks := []Disk{
				NewDisk(t, "data", 64<<20),
				NewDisk(t, "scsi", 48<<20).on(VirtioSCSI),
				NewDisk(t, "nvme", 48<<20).on(NVMe),
				NewDisk(t, "paths", 48<<20).on(NVMeMultipath),
				NewDisk(t, "trim", 128<<20).on(NVMe),
				NewDisk(t, "large", 320<<20).on(NVMe),
				NewDisk(t, "keep", 8<<20),
			}
			r := Run(t, Config{Kernel: kernel, MemMB: 1024, Timeout: busyTimeout, Disks: disks, ScratchMB: 128, Skip: copiedByTheOther(kernel)}, program)
			t.Logf("boot %v, all %v, %d tests", r.Boot, r.Total, r.Tests)
		})
	}
}
