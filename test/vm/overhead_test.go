package vm

import (
	"flag"
	"fmt"
	"testing"
)

var overheadRounds = flag.Int("overhead-rounds", 0, "measure the cost of remembering writes as often; bench/run does")

// What remembering writes costs: figures for bench/run, and nothing that can fail by
// being slow.
func TestWriteOverhead(t *testing.T) {
	if *overheadRounds == 0 {
		t.Skip("a measurement: bench/run -only rig")
	}
	program := Build(t, "tidemark/test/vm/guest/overhead")
	command := BuildCommand(t, "tidemark/cmd/tidemark")
	for _, kernel := range []Kernel{Linux61, Linux612, Newest} {
		t.Run(string(kernel), func(t *testing.T) {
			Run(t, Config{
				Kernel: kernel, Timeout: busyTimeout,
				Modules: []string{"dm-era"}, Programs: []string{"fio"},
				Disks: []Disk{NewDisk(t, "data", 1<<30), NewDisk(t, "meta", 8<<20)},
				Files: map[string]string{"/bin/tidemark": command},
				Env:   []string{fmt.Sprintf("ROUNDS=%d", *overheadRounds), "KERNEL=" + string(kernel)},
				Tests: "^TestOverhead$",
			}, program)
		})
	}
}

var linearRounds = flag.Int("linear-rounds", 0, "measure the cost of a linear device as often; bench/run does")

// What a linear device costs over the plain one: figures for bench/run, too.
func TestLinearCost(t *testing.T) {
	if *linearRounds == 0 {
		t.Skip("a measurement: bench/run -only linear")
	}
	program := Build(t, "tidemark/test/vm/guest/overhead")
	for _, kernel := range forMapper() {
		t.Run(string(kernel), func(t *testing.T) {
			Run(t, Config{
				Kernel: kernel, Timeout: busyTimeout, Programs: []string{"fio"},
				Disks: []Disk{NewDisk(t, "data", 1<<30)},
				Env:   []string{fmt.Sprintf("ROUNDS=%d", *linearRounds), "KERNEL=" + string(kernel)},
				Tests: "^TestLinear$",
			}, program)
		})
	}
}
