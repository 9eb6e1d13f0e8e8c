package vm

import (
	"testing"
	"time"
)

// busyTimeout is for guests that take about a minute each when the machine does nothing else.
const busyTimeout = 15 * time.Minute

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
			r := Run(t, Config{Kernel: kernel, MemMB: 1024, Timeout: busyTimeout, Disks: disks, ScratchMB: 128}, program)
			t.Logf("boot %v, all %v, %d tests", r.Boot, r.Total, r.Tests)
		})
	}
}
