package vm

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// lvm2 is LVM's commands, beside what is in every guest.
var lvm2 = []string{"lvm", "lvs", "pvs", "pvmove", "lvchange", "lvcreate", "lvconvert", "lvremove", "lvextend", "vgchange", "vgcreate", "vgremove"}

var storeRounds = flag.Int("store-rounds", 0, "how often to kill a run that applies a store, and to cut its power; 0 is a few times")

var storeTests = flag.String("store-tests", "", "the `pattern` of the tests of stores to run in guests")

// Stores of dm-snapshot are applied as the kernel and LVM apply them, and tell what changed.
func TestSnapstore(t *testing.T) {
	t.Parallel()
	program := Build(t, "tidemark/test/vm/guest/snapstore")
	command := BuildCommand(t, "tidemark/cmd/tidemark")
	for _, kernel := range forMapper() {
		t.Run(string(kernel), func(t *testing.T) {
			t.Parallel()
			skip := "^Test(Cut|Measure)$"
			if more := kernel.skipped("Refuse|TestCommandsAskTheStore|TestAVolumeIsRolledBack|TestAKilledRun", "TestMirrorsOfABusyOrigin"); more != "" && *storeTests == "" {
				skip += "|" + more
			}
			r := Run(t, Config{
				Kernel: kernel, Timeout: busyTimeout + time.Duration(*storeRounds)*10*time.Second, Tests: *storeTests, Skip: skip,
				Modules: []string{"dm-snapshot", "dm-delay"}, Programs: append([]string{"fio"}, lvm2...),
				Files: map[string]string{"/bin/tidemark": command},
				Disks: []Disk{NewDisk(t, "data", 128<<20)},
				Env:   []string{fmt.Sprintf("ROUNDS=%d", *storeRounds)},
			}, program)
			t.Logf("boot %v, all %v, %d tests", r.Boot, r.Total, r.Tests)
		})
	}
}

var applyRounds = flag.Int("apply-rounds", 0, "measure as often how fast a store is applied; bench/run does")

// How fast a store is applied, by us and by the kernel: figures for bench/run, and nothing that
// can fail by being slow.
func TestApplySpeed(t *testing.T) {
	if *applyRounds == 0 {
		t.Skip("a measurement: bench/run -only merge")
	}
	program := Build(t, "tidemark/test/vm/guest/snapstore")
	command := BuildCommand(t, "tidemark/cmd/tidemark")
	for _, kernel := range forMapper() {
		t.Run(string(kernel), func(t *testing.T) {
			Run(t, Config{
				Kernel: kernel, Timeout: busyTimeout, Tests: "^TestMeasure$",
				Modules: []string{"dm-snapshot"}, Programs: []string{"fio"}, Files: map[string]string{"/bin/tidemark": command},
				Disks: []Disk{NewDisk(t, "data", 512<<20), NewDisk(t, "master", 256<<20)},
				Env:   []string{fmt.Sprintf("MEASURE=%d", *applyRounds), "KERNEL=" + string(kernel)},
			}, program)
		})
	}
}

// When the power is cut at whatever write of a run, on a disk that forgets what was not flushed,
// the volume is whole, or not activated by itself; and the next run ends it.
func TestSnapstorePowerCut(t *testing.T) {
	t.Parallel()
	program := Build(t, "tidemark/test/vm/guest/snapstore")
	command := BuildCommand(t, "tidemark/cmd/tidemark")
	for _, kernel := range forMapper() {
		t.Run(string(kernel), func(t *testing.T) {
			t.Parallel()
			seed := uint64(time.Now().UnixNano())
			random := rand.New(rand.NewPCG(seed, 0))
			disk := NewDisk(t, "data", 64<<20)
			disk.Volatile = true
			var begun, writes int
			var want, old string
			var found []string
			event := func(m *Machine, event string) string {
				what, value, _ := strings.Cut(event, " ")
				switch {
				case what == "want":
					want = value
				case what == "old":
					old = value
				case what == "begin":
					begun = m.Writes("data")
				case what == "end":
					writes = m.Writes("data") - begun
				case event == "cut":
					m.CutAtWrite("data", 1+random.IntN(max(writes, 1)))
				case event == "cut now":
					m.PowerCut()
				case what == "found":
					found = append(found, value)
				}
				return ""
			}
			boots := max(*storeRounds, 3)
			for i := range boots {
				disk.Seed = seed + uint64(i)
				env := []string{fmt.Sprintf("BOOT=%d", i), "WANT=" + want, "OLD=" + old}
				if i == boots-1 {
					env = append(env, "LAST=1")
				}
				r := Run(t, Config{
					Kernel: kernel, Timeout: busyTimeout, Tests: "^TestCut$", Disks: []Disk{disk}, Programs: lvm2,
					Modules: []string{"dm-snapshot"}, Files: map[string]string{"/bin/tidemark": command}, OnEvent: event, Env: env,
				}, program)
				if t.Failed() || r.Cut == (i == boots-1) {
					t.Fatalf("seed %d, boot %d: cut %v", seed, i, r.Cut)
				}
			}
			t.Logf("seed %d, %d writes in a run, found %q", seed, writes, found)
		})
	}
}
