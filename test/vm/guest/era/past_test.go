//go:build linux

package era_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/boot"
	"tidemark/test/vm/guest"
)

// A system that runs on the data device, because it was booted past the era device,
// makes the eras from before worth nothing; those from after it are.
func TestABootPastTheDeviceIsNoted(t *testing.T) {
	data, meta := guest.Disk(t, "data"), guest.Disk(t, "meta")
	low := guest.Mapper(t, "low-data", "0 "+guest.Sectors(t, data)+" linear "+data+" 0")
	under := guest.Mapper(t, "low-meta", "0 "+guest.Sectors(t, meta)+" linear "+meta+" 0")
	if err := os.MkdirAll(filepath.Dir(boot.TabPath), 0o755); err != nil {
		t.Fatal(err)
	}
	guest.WriteFile(t, boot.TabPath, "past\t"+low+"\t"+under+"\tinitramfs\n")
	t.Cleanup(func() { remove(t, boot.TabPath) })
	open := func() { works(t, "era", "open", "past", "--data", low, "--meta", under) }
	since := func(when, era string, code int) (said string) {
		t.Helper()
		_, said, got := tidemark(t, "era", "changes", "past", "--since", era)
		if got != code || code != 0 && !strings.Contains(said, "while the era device was not up") {
			t.Errorf("%s: changes since %s: exit code %d, want %d\n%s", when, era, got, code, said)
		}
		return said
	}
	works(t, "era", "create", "past", "--data", low, "--meta", under, "--block-size", "64K", "--force")
	since("new", "1", 0)
	works(t, "boot", "note")
	since("booted as usual", "1", 0)
	works(t, "era", "close", "past")
	open()
	since("closed and opened", "1", 0)
	works(t, "era", "close", "past")
	if _, said, code := tidemark(t, "boot", "note"); code != 0 || !strings.Contains(said, "is not open") {
		t.Errorf("note: exit code %d, %s", code, said)
	}
	fill(t, low, 1<<20, "written past it")
	works(t, "boot", "note") // at the end of that system
	open()
	_, next, _ := strings.Cut(since("booted past", "1", 4), "ask from era ")
	since("after a full copy", strings.TrimSpace(next), 0)

	// Opening what is open switches off the discards that a table loaded anew takes.
	guest.Run(t, "sh", "-c", "dmsetup table past | dmsetup reload past && dmsetup suspend past && dmsetup resume past")
	if statusOf(t, "past").Kernel.DiscardsDisabled {
		t.Fatal("the new table takes no discards")
	}
	works(t, "boot", "open", "past")
	if !statusOf(t, "past").Kernel.DiscardsDisabled {
		t.Error("the open device takes discards")
	}
	works(t, "boot", "note")
	works(t, "era", "close", "past")
}
