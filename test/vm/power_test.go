package vm

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

// After a power cut the same disks boot again, with all that was flushed and, on a
// volatile disk, without part of what was not.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	program := Build(t, "tidemark/test/vm/guest/power")
	for _, c := range []struct {
		name       string
		kernel     Kernel
		volatile   bool
		cutAtWrite int
		cutAfter   int // files
	}{
		{"plain disk, when told", Linux510, false, 0, 3},
		{"volatile disk, when told", Newest, true, 0, 3},
		{"volatile disk, at a write", Linux510, true, 450, -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			disk := NewDisk(t, "data", 64<<20)
			disk.Volatile, disk.CutAtWrite = c.volatile, c.cutAtWrite
			disk.Seed = uint64(time.Now().UnixNano())
			t.Log("seed", disk.Seed)
			synced := -1
			first := Run(t, Config{
				Kernel: c.kernel, Tests: "^TestWrite$", Disks: []Disk{disk},
				OnEvent: func(m *Machine, event string) string {
					n, err := strconv.Atoi(strings.TrimPrefix(event, "synced "))
					if err != nil {
						return ""
					}
					synced = n
					if n == c.cutAfter {
						m.PowerCut()
					}
					return ""
				},
			}, program)
			t.Logf("%d files synced, %v writes, lost %v", synced+1, first.Writes, first.Lost)
			if !first.Cut || c.cutAfter >= 0 && synced != c.cutAfter {
				t.Fatalf("cut: %v, after file %d", first.Cut, synced)
			}
			disk.CutAtWrite = 0
			Run(t, Config{
				Kernel: c.kernel, Tests: "^TestRead$", Disks: []Disk{disk},
				Env: []string{fmt.Sprintf("LAST_SYNCED=%d", synced)},
			}, program)
		})
	}
}
