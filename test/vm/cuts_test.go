package vm

import (
	"strconv"
	"strings"
	"testing"
	"time"
)

// chain is a machine that loses its power again and again, at a chosen stage of a
// mirror, and boots again on the same disks.
type chain struct {
	kind   string // of the target: "device" or "image"
	begun  int    // writes to the target before the run that is counted
	writes int    // of a run
	old    string // checksum of the target before the run that is cut
	found  []string
}

// stages lists what each boot does, beside looking at what the cut before it left:
// "first" and "resume" are cut during the first copy; "before" and "frozen" just
// before the freeze and under it; a number is the part of the target's writes, in
// percent, after which an update is cut, from the journal to the state; "" is not cut.
func stages(kernel Kernel) (kind string, list []string) {
	if kernel.old() {
		return "image", []string{"first", "resume", "before", "frozen", "10", "85", ""}
	}
	return "device", []string{"first", "resume", "before", "frozen", "45", "95", ""}
}

// Whenever the power is cut, the source is clean, the target is old or new, and the
// next run brings it up to date.
func TestPowerCutInEveryStage(t *testing.T) {
	t.Parallel()
	program := Build(t, "tidemark/test/vm/guest/faults/cut")
	command := BuildCommand(t, "tidemark/cmd/tidemark")
	for _, kernel := range oldestAndNewest() {
		t.Run(string(kernel), func(t *testing.T) {
			t.Parallel()
			seed := uint64(time.Now().UnixNano())
			t.Log("seed", seed)
			source, target := NewDisk(t, "source", 32<<20), NewDisk(t, "target", 64<<20)
			source.Volatile, target.Volatile = true, true
			kind, list := stages(kernel)
			c := &chain{kind: kind}
			for i, stage := range list {
				source.Seed, target.Seed = seed+uint64(2*i), seed+uint64(2*i+1)
				c.boot(t, Config{
					Kernel: kernel, Disks: []Disk{source, target}, Timeout: busyTimeout,
					Files: map[string]string{"/bin/tidemark": command}, OnEvent: c.event,
					Env: []string{"KIND=" + kind, "STAGE=" + stage, "BOOT=" + strconv.Itoa(i), "OLD=" + c.old},
				}, program, stage)
			}
			t.Log("found after each cut:", c.found)
			if all := strings.Join(c.found, ", "); !strings.HasPrefix(all, "unfinished, unfinished, old, old, ") || len(c.found) != len(list)-1 {
				t.Error("a stage was not cut where it should have been")
			}
		})
	}
}

// boot runs one boot, up to the cut.
func (c *chain) boot(t *testing.T, cfg Config, program Program, stage string) {
	t.Run("boot to "+stage, func(t *testing.T) {
		r := Run(t, cfg, program)
		t.Logf("boot %v, all %v, %v writes (%d in a run), lost %v", r.Boot, r.Total, r.Writes, c.writes, r.Lost)
		if r.Cut != (stage != "") {
			t.Errorf("cut: %v", r.Cut)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
}

// event answers what the guest tells.
func (c *chain) event(m *Machine, event string) string {
	name, value, _ := strings.Cut(event, " ")
	switch name {
	case "found":
		c.found = append(c.found, value)
	case "old":
		c.old = value
	case "begin":
		c.begun = m.Writes("target")
	case "end":
		c.writes = m.Writes("target") - c.begun
	case "cut":
		m.PowerCut()
	case "cut-at-write":
		if n, err := strconv.Atoi(value); err == nil {
			m.CutAtWrite("target", n)
		}
	case "cut-at-percent":
		if n, err := strconv.Atoi(value); err == nil {
			m.CutAtWrite("target", max(1, c.writes*n/100))
		}
	}
	return ""
}
