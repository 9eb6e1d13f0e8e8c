package vm

import "testing"

// The tracker sees every write on real kernels' devices.
func TestTracker(t *testing.T) {
	program := Build(t, "tidemark/test/vm/guest/tracker")
	for _, kernel := range Kernels() {
		t.Run(string(kernel), func(t *testing.T) {
			data, scsi, nvme := NewDisk(t, "data", 64<<20), NewDisk(t, "scsi", 48<<20), NewDisk(t, "nvme", 48<<20)
			scsi.Bus, nvme.Bus = VirtioSCSI, NVMe
			r := Run(t, Config{Kernel: kernel, Disks: []Disk{data, scsi, nvme, NewDisk(t, "keep", 8<<20)}, ScratchMB: 128}, program)
			t.Logf("boot %v, all %v, %d tests", r.Boot, r.Total, r.Tests)
		})
	}
}
