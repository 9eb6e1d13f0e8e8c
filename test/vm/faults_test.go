package vm

import (
	"math/rand/v2"
	"testing"
	"time"
)

// loggedSize is the length in bytes of the disks whose writes are logged; the guest
// knows it too.
const loggedSize = 64 << 20

// Mirrors survive disks that fail, lie and damage; and from the logs of all that was
// written to their disks: at every moment they are old or new. Images are logged on one
// kernel, devices on the other.
func TestFaults(t *testing.T) {
	t.Parallel()
	program := Build(t, "tidemark/test/vm/guest/faults")
	command := BuildCommand(t, "tidemark/cmd/tidemark")
	for _, kernel := range oldestAndNewest() {
		t.Run(string(kernel), func(t *testing.T) {
			t.Parallel()
			kind, skip := "image", "^TestLogged$/^device$|^TestUnwritableFolder$|^TestUnwritableDevice$|^TestUnreadableDevice$"
			if !kernel.old() {
				kind, skip = "device", "^TestLogged$/^image$|^TestUnreadableSource$|^TestUnwritableImage$"
			}
			log := NewDisk(t, "log-"+kind, 256<<20)
			disks := []Disk{
				NewDisk(t, "source", 64<<20), NewDisk(t, "target", 64<<20),
				NewDisk(t, "on-"+kind, loggedSize), log,
			}
			r := Run(t, Config{
				Kernel: kernel, MemMB: 1024, Timeout: busyTimeout, Disks: disks, ScratchMB: 256, Skip: skip,
				Files: map[string]string{"/bin/tidemark": command},
			}, program)
			t.Logf("boot %v, all %v, %d tests", r.Boot, r.Total, r.Tests)
			if t.Failed() {
				return
			}
			seed := uint64(time.Now().UnixNano())
			t.Log("seed", seed)
			t.Run("replay of "+kind, func(t *testing.T) {
				replayed(t, log.Path, kind, rand.New(rand.NewPCG(seed, 0)))
			})
		})
	}
}
