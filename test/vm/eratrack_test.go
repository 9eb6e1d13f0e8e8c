package vm

import (
	"math/rand/v2"
	"testing"
	"time"
)

// Mirrors of era devices go by the eras, and notice when they cannot. What does not
// depend on the kernel is done in one of them, because it takes long.
func TestEraMirrors(t *testing.T) {
	t.Parallel()
	program := Build(t, "tidemark/test/vm/guest/eratrack")
	command := BuildCommand(t, "tidemark/cmd/tidemark")
	for _, kernel := range forMapper() {
		t.Run(string(kernel), func(t *testing.T) {
			t.Parallel()
			skip := kernel.skipped("TestMarksAreLostLoudly|TestCommandChoosesTheEras|TestMirrorsOfABusyEraDevice", "TestKilledRunsLeaveNoSnapshot|TestSnapshotOfAnotherProgramIsLeftAlone|TestDrainWaits|TestDiscardsAreRefused")
			r := Run(t, Config{
				Kernel: kernel, Timeout: busyTimeout, ScratchMB: 512, Skip: skip,
				Tests:   "^Test([A-QS-Z]|R[^e])", // all but TestRestart...
				Modules: []string{"dm-era", "dm-delay", "loop"}, Programs: []string{"fio"},
				Disks: []Disk{NewDisk(t, "data", 24<<20), NewDisk(t, "meta", 8<<20)},
				Files: map[string]string{"/bin/tidemark": command},
			}, program)
			t.Logf("boot %v, all %v, %d tests", r.Boot, r.Total, r.Tests)
		})
	}
}

// A mirror of an era device goes on after a clean shutdown, and after the power was
// cut at any write while the device was written to and mirrored.
func TestEraMirrorsOverRestarts(t *testing.T) {
	t.Parallel()
	program := Build(t, "tidemark/test/vm/guest/eratrack")
	for _, kernel := range oneOf(forMapper()) {
		t.Run(string(kernel), func(t *testing.T) {
			t.Parallel()
			seed := uint64(time.Now().UnixNano())
			random := rand.New(rand.NewPCG(seed, 0))
			data, meta, home := NewDisk(t, "data", 24<<20), NewDisk(t, "meta", 8<<20), NewDisk(t, "home", 256<<20)
			boot := func(tests string, cut int) Result {
				data.Volatile, meta.Volatile = cut > 0, cut > 0
				data.Seed, meta.Seed, data.CutAtWrite = seed, seed+1, cut
				return Run(t, Config{
					Kernel: kernel, Timeout: busyTimeout, Tests: "^" + tests + "$",
					Modules: []string{"dm-era"}, Programs: []string{"fio"}, Disks: []Disk{data, meta, home},
				}, program)
			}
			boot("TestRestartBegin", 0)
			cut := 300 + random.IntN(1500)
			r := boot("TestRestartClean", cut)
			t.Logf("seed %d, cut at write %d: %v, lost %v", seed, cut, r.Writes, r.Lost)
			if !r.Cut {
				t.Fatal("the power was not cut")
			}
			boot("TestRestartCut", 0)
		})
	}
}
