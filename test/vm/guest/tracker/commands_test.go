//go:build linux

package tracker_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/test/vm/guest"
	"tidemark/track"
)

// A command that goes around the block layer and may write loses the mark; one that
// only reads does not.
func TestPassthroughLosesTheMark(t *testing.T) {
	guest.Modprobe(t, "sg")
	dev := guest.Disk(t, "scsi")
	data := filepath.Join(t.TempDir(), "sector")
	guest.WriteFile(t, data, strings.Repeat("!", 512))
	for _, c := range []struct {
		name string
		lost bool
		args []string
	}{
		{"READ(10)", false, []string{"-r", "512", dev, "28", "00", "00", "00", "00", "10", "00", "00", "01", "00"}},
		{"WRITE(10)", true, []string{"-s", "512", "-i", data, dev, "2a", "00", "00", "00", "00", "10", "00", "00", "01", "00"}},
		{"WRITE SAME(10)", true, []string{"-s", "512", "-i", data, dev, "41", "00", "00", "00", "00", "10", "00", "00", "08", "00"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := openTracker(t, dev)
			mark := cut(t, l)
			guest.Run(t, "sg_raw", c.args...)
			_, err := l.Changes(t.Context(), mark, "")
			if lost := errors.Is(err, track.ErrMarkLost); lost != c.lost || err != nil && !lost {
				t.Fatalf("changes: %v", err)
			}
		})
	}
}

// A filesystem mounted with discard trims deleted files in requests of many ranges;
// every block that it changes is in the set.
func TestDiscardsOfManyRanges(t *testing.T) {
	for _, fs := range []struct{ mkfs, options string }{
		{"mkfs.ext4 -q -F", "discard"},
		{"mkfs.xfs -q -f -K", "discard"},
		{"mkfs.btrfs -q -f -K", "discard=sync"},
	} {
		name := strings.TrimPrefix(strings.Fields(fs.mkfs)[0], "mkfs.")
		t.Run(name, func(t *testing.T) {
			if name == "xfs" {
				discards(t, guest.Disk(t, "large"), fs.mkfs, fs.options) // xfs takes no less than 300 MB
				return
			}
			discards(t, guest.Disk(t, "trim"), fs.mkfs, fs.options)
		})
	}
}

func discards(t *testing.T, dev, mkfs, options string) {
	command := strings.Fields(mkfs)
	guest.Run(t, command[0], append(command[1:], dev)...)
	mount := t.TempDir()
	guest.Run(t, "mount", "-o", options, dev, mount)
	t.Cleanup(func() { guest.Run(t, "umount", mount) })
	for i := range 200 {
		guest.WriteFile(t, filepath.Join(mount, strconv.Itoa(i)), strings.Repeat(strconv.Itoa(i), 16<<10))
	}
	unix.Sync()

	l := openTracker(t, dev)
	d, err := block.Open(dev, block.Options{Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	guest.Run(t, "fsfreeze", "-f", mount)
	before := look(t, d)
	mark := cut(t, l)
	guest.Run(t, "fsfreeze", "-u", mount)
	merged := discardMerges(t, dev)
	for i := 0; i < 200; i += 2 {
		if err := os.Remove(filepath.Join(mount, strconv.Itoa(i))); err != nil {
			t.Fatal(err)
		}
	}
	unix.Sync()
	guest.Run(t, "fsfreeze", "-f", mount)
	after := before.again(t, d)
	got := changes(t, l, mark, cut(t, l))
	guest.Run(t, "fsfreeze", "-u", mount)
	want := before.differences(after)
	t.Logf("%d merged discards, %d bytes differ, %d are in the set", discardMerges(t, dev)-merged, want.Bytes(), got.Bytes())
	mustHold(t, "discards", got, want)
	// Some discards may still be under way, and then the content has not changed.
	if want.Empty() || got.Bytes() < 1<<20 {
		t.Errorf("%d bytes changed, %d are in the set: nothing was trimmed", want.Bytes(), got.Bytes())
	}
}

// discardMerges is how many discards were merged into requests of others
// (Documentation/admin-guide/iostats.rst, field 13).
func discardMerges(t *testing.T, dev string) int {
	t.Helper()
	stat, err := os.ReadFile("/sys/block/" + filepath.Base(dev) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.Fields(string(stat))[12])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Appends and resets of a zoned disk are seen, whole zones at a time.
func TestZonedDisk(t *testing.T) {
	const zone = 4 << 20
	dev := nullDevice(t, map[string]string{"size": "128", "zoned": "1", "zone_size": "4", "zone_nr_conv": "2"})
	d := guest.OpenDirect(t, dev)
	l := openTracker(t, dev)
	t.Run("write at the write pointer", func(t *testing.T) {
		mark := cut(t, l)
		want := extent.NewSet(writeAt(t, d, 5*zone, 64<<10), writeAt(t, d, 5*zone+64<<10, 64<<10), writeAt(t, d, granule, granule))
		mustHold(t, "writes", changes(t, l, mark, cut(t, l)), want)
	})
	t.Run("reset and finish", func(t *testing.T) {
		mark := cut(t, l)
		guest.Run(t, "blkzone", "reset", "-o", strconv.Itoa(5*zone>>9), "-c", "1", dev)
		guest.Run(t, "blkzone", "finish", "-o", strconv.Itoa(7*zone>>9), "-c", "1", dev)
		want := extent.NewSet(extent.Extent{Off: 5 * zone, Len: zone}, extent.Extent{Off: 7 * zone, Len: zone})
		mustHold(t, "reset", changes(t, l, mark, cut(t, l)), want)
	})
	t.Run("append", func(t *testing.T) {
		if !guest.Kernel(t, 5, 12) {
			t.Skip("no filesystem of this kernel appends to zones (btrfs, Linux 5.12)")
		}
		d.Close() // mkfs wants the disk for itself
		guest.Run(t, "mkfs.btrfs", "-q", "-f", "-O", "zoned", "-d", "single", "-m", "single", dev)
		mount := t.TempDir()
		guest.Run(t, "mount", dev, mount)
		t.Cleanup(func() { guest.Run(t, "umount", mount) })
		ro, err := block.Open(dev, block.Options{Direct: true})
		if err != nil {
			t.Fatal(err)
		}
		defer ro.Close()
		guest.Run(t, "fsfreeze", "-f", mount)
		before := look(t, ro)
		mark := cut(t, l)
		guest.Run(t, "fsfreeze", "-u", mount)
		guest.WriteFile(t, filepath.Join(mount, "file"), strings.Repeat("append", 400<<10))
		unix.Sync()
		guest.Run(t, "fsfreeze", "-f", mount)
		after := before.again(t, ro)
		got := changes(t, l, mark, cut(t, l))
		guest.Run(t, "fsfreeze", "-u", mount)
		want := before.differences(after)
		t.Logf("%d bytes differ, %d are in the set", want.Bytes(), got.Bytes())
		mustHold(t, "appends", got, want)
		if want.Bytes() < 2<<20 {
			t.Errorf("only %d bytes changed", want.Bytes())
		}
	})
}
