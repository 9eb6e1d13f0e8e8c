package vm

import "testing"

// linux/dm and dmsetup see the same in every kernel.
func TestDeviceMapper(t *testing.T) {
	t.Parallel()
	program := Build(t, "tidemark/test/vm/guest/dm")
	for _, kernel := range forMapper() {
		t.Run(string(kernel), func(t *testing.T) {
			t.Parallel()
			r := Run(t, Config{Kernel: kernel, Disks: []Disk{NewDisk(t, "data", 64<<20)}}, program)
			t.Logf("boot %v, all %v, %d tests", r.Boot, r.Total, r.Tests)
		})
	}
}

// The kernel needs as much dm-era metadata as format/era computes. The large devices
// take most of the time, so one kernel does.
func TestEraPlan(t *testing.T) {
	t.Parallel()
	program := Build(t, "tidemark/test/vm/guest/eraplan")
	disk := NewDisk(t, "meta", 256<<20)
	r := Run(t, Config{Kernel: Linux61, Timeout: busyTimeout, Disks: []Disk{disk}}, program)
	t.Logf("boot %v, all %v, %d tests", r.Boot, r.Total, r.Tests)
}
