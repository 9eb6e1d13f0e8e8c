package vm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The rig's guest tests pass in the oldest and the newest kernel.
func TestGuests(t *testing.T) {
	t.Parallel()
	program := Build(t, "tidemark/test/vm/guest")
	for _, kernel := range oldestAndNewest() {
		t.Run(string(kernel), func(t *testing.T) {
			t.Parallel()
			c, err := openCache()
			if err != nil {
				t.Fatal(err)
			}
			release, err := c.release(kernel)
			if err != nil {
				t.Fatal(err)
			}
			r := Run(t, Config{
				Kernel: kernel,
				Disks:  []Disk{NewDisk(t, "data", 64<<20)},
				Env:    []string{"WANT_KERNEL=" + release},
			}, program)
			dmesg, err := os.ReadFile(filepath.Join(r.Files, "dmesg"))
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(dmesg), "Linux version "+release) {
				t.Error("the guest's log did not come back")
			}
			t.Logf("boot %v, all %v, %d tests", r.Boot, r.Total, r.Tests)
		})
	}
}
