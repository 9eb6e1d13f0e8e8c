//go:build linux

package snapstore_test

import (
	"os"
	"strings"
	"testing"

	"tidemark/test/vm/guest"
)

// TestCut is one boot of a machine whose power is cut while a store is applied to a volume; the
// host runs it alone. The first boot makes the volume, and counts the writes of one run.
func TestCut(t *testing.T) {
	guest.Modprobe(t, "dm-snapshot")
	const lv = "/dev/vg/lv"
	if os.Getenv("BOOT") == "0" {
		guest.Run(t, "vgcreate", "--quiet", "vg", guest.Disk(t, "data"))
		volume(t, "lv")
		snapped(t, "14M")
		flush(t)
		guest.Tell(t, "want "+guest.Sum(t, lv))
		load(t, 10, lv)
		guest.Tell(t, "begin")
		applied(t)
		guest.Tell(t, "end")
	} else {
		afterCut(t, lv)
	}
	if os.Getenv("LAST") != "" {
		return
	}
	load(t, 10, lv)
	flush(t)
	guest.Tell(t, "old "+guest.Sum(t, lv))
	guest.Tell(t, "cut")
	applied(t)
	guest.Tell(t, "cut now")
	t.Fatal("there is still power")
}

// flush has the disk keep all that was written to it.
func flush(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile(guest.Disk(t, "data"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// afterCut does what a boot does, and then finishes what the cut has left.
func afterCut(t *testing.T, lv string) {
	t.Helper()
	guest.Run(t, "vgchange", "--quiet", "--activate", "y", "vg")
	attr := guest.Run(t, "lvs", "--noheadings", "-o", "lv_active,lv_tags", "vg/lv")
	_, err := os.Stat(lv)
	half := strings.Contains(attr, "tidemark_half_applied")
	if half == (err == nil) {
		t.Fatalf("the volume is %q, and its device: %v", attr, err)
	}
	if half {
		guest.Tell(t, "found half applied")
	} else if sum := guest.Sum(t, lv); sum == os.Getenv("OLD") || sum == os.Getenv("WANT") {
		guest.Tell(t, "found whole")
	} else {
		t.Fatalf("the volume was activated although it is neither old nor new: %s", sum)
	}
	applied(t)
	if sum := guest.Sum(t, lv); sum != os.Getenv("WANT") {
		t.Fatalf("after the cut the volume is %s, want %s", sum, os.Getenv("WANT"))
	}
	if after := tables(t); strings.Contains(after, "tidemark") {
		t.Errorf("left behind:\n%s", after)
	}
}
