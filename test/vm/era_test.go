package vm

import (
	"testing"
	"time"
)

// Era devices, their snapshots and the commands on them, on the kernel's own dm-era.
func TestEra(t *testing.T) {
	t.Parallel()
	program := Build(t, "tidemark/test/vm/guest/era")
	command := BuildCommand(t, "tidemark/cmd/tidemark")
	for _, kernel := range forMapper() {
		t.Run(string(kernel), func(t *testing.T) {
			t.Parallel()
			disks := []Disk{
				NewDisk(t, "data", 48<<20), // takes discards
				NewDisk(t, "meta", 8<<20),
				NewDisk(t, "other", 34<<20),
			}
			// What does not depend on the kernel is done in one.
			skip := kernel.skipped("^TestCopyUnderWritesIsComplete$|^TestAdopt$|^TestChangesAreThoseOfEraInvalidate$", "^TestCreateRefuses|^TestOpenRefuses$|^TestDiscardsThatAreLetThrough$|^TestABootPastTheDeviceIsNoted$")
			r := Run(t, Config{
				Kernel: kernel, Timeout: 6 * time.Minute, Disks: disks, Skip: skip,
				Files: map[string]string{"/bin/tidemark": command},
			}, program)
			t.Logf("boot %v, all %v, %d tests", r.Boot, r.Total, r.Tests)
		})
	}
}
