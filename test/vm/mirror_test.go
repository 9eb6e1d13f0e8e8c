package vm

import "testing"

// Live mirrors of busy filesystems work in every kernel.
func TestMirror(t *testing.T) {
	program := Build(t, "tidemark/test/vm/guest/mirror")
	command := BuildCommand(t, "tidemark/cmd/tidemark")
	for _, kernel := range Kernels() {
		t.Run(string(kernel), func(t *testing.T) {
			t.Parallel()
			disks := []Disk{
				NewDisk(t, "data", 128<<20),
				NewDisk(t, "scsi", 64<<20).on(VirtioSCSI),
				NewDisk(t, "large", 304<<20), // XFS takes no less than 300 MB
			}
			r := Run(t, Config{
				Kernel: kernel, MemMB: 1024, Timeout: busyTimeout, Disks: disks, ScratchMB: 2048,
				Modules: []string{"loop"},
				Files:   map[string]string{"/bin/tidemark": command},
			}, program)
			t.Logf("boot %v, all %v, %d tests", r.Boot, r.Total, r.Tests)
		})
	}
}
