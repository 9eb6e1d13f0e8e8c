package vm

import (
	"strconv"
	"testing"
	"time"
)

// A persistent snapshot is there again after a shutdown and after a power cut, and holds what it
// held. Where the disk was used without it, it is dropped, and that is told. A rollback goes on after
// a power cut in its middle.
func TestPersistentSnapshots(t *testing.T) {
	t.Parallel()
	program := Build(t, "tidemark/test/vm/guest/persist")
	command := BuildCommand(t, "tidemark/cmd/tidemark")
	for _, kernel := range oneOf(forMapper()) {
		t.Run(string(kernel), func(t *testing.T) {
			t.Parallel()
			seed := uint64(time.Now().UnixNano())
			t.Log("seed", seed)
			disks := []Disk{NewDisk(t, "ext4", 40<<20), NewDisk(t, "xfs", 40<<20), NewDisk(t, "state", 8<<20)}
			host(t, "mkfs.ext4", "-q", disks[2].Path)
			for boot := 1; boot <= 3; boot++ {
				for i := range disks {
					disks[i].Volatile, disks[i].Seed = true, seed+uint64(10*boot+i)
				}
				cut := boot < 3
				r := Run(t, Config{
					Kernel: kernel, Disks: disks, Timeout: busyTimeout, Tests: "^TestBoot" + strconv.Itoa(boot) + "$",
					Modules: []string{"dm-snapshot", "dm-zero", "ext4", "xfs"}, Programs: []string{"fio", "e2fsck"},
					Files: map[string]string{"/bin/tidemark": command},
					OnEvent: func(m *Machine, event string) string {
						if event == "cut" {
							m.PowerCut()
						}
						return ""
					},
				}, program)
				t.Logf("boot %d: up after %v, all %v, lost %v", boot, r.Boot, r.Total, r.Lost)
				if r.Cut != cut {
					t.Errorf("boot %d: cut: %v", boot, r.Cut)
				}
				if t.Failed() {
					return
				}
			}
		})
	}
}
