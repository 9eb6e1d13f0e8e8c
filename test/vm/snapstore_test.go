package vm

import "testing"

// lvm2 is LVM's commands, beside what is in every guest.
var lvm2 = []string{"lvm", "lvs", "lvchange", "lvcreate", "lvconvert", "lvremove", "vgcreate", "vgremove"}

// Stores of dm-snapshot are applied as the kernel and LVM apply them.
func TestSnapstore(t *testing.T) {
	t.Parallel()
	program := Build(t, "tidemark/test/vm/guest/snapstore")
	command := BuildCommand(t, "tidemark/cmd/tidemark")
	for _, kernel := range Kernels() {
		t.Run(string(kernel), func(t *testing.T) {
			t.Parallel()
			r := Run(t, Config{
				Kernel: kernel, Modules: []string{"dm-snapshot", "dm-delay"}, Programs: append(lvm2, "fio"),
				Files: map[string]string{"/bin/tidemark": command},
				Disks: []Disk{NewDisk(t, "data", 128<<20)},
			}, program)
			t.Logf("boot %v, all %v, %d tests", r.Boot, r.Total, r.Tests)
		})
	}
}
