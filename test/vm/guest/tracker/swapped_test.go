//go:build linux

package tracker_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/test/vm/guest"
	"tidemark/track"
	"tidemark/track/bpf"
	"tidemark/transfer/tracking"
)

// replaceTable puts another table in the place of a device's.
func replaceTable(t *testing.T, name, table string) {
	t.Helper()
	guest.Run(t, "dmsetup", "load", name, "--table", table)
	guest.Run(t, "dmsetup", "suspend", name)
	guest.Run(t, "dmsetup", "resume", name)
}

// Another table is another content, which nobody wrote: that of the disk itself, or
// of one below it.
func TestReplacedTableLosesTheMarks(t *testing.T) {
	disk := guest.Disk(t, "data")
	guest.Mapper(t, "lower", "0 32768 linear "+disk+" 0")
	dev := guest.Mapper(t, "upper", "0 32768 linear /dev/mapper/lower 0")
	for name, table := range map[string]string{
		"upper": "0 32768 linear " + disk + " 32768",
		"lower": "0 32768 linear " + disk + " 65536",
	} {
		t.Run(name, func(t *testing.T) {
			l := openTracker(t, dev)
			mark := cut(t, l)
			changes(t, l, mark, "")
			replaceTable(t, name, table)
			if _, err := l.Changes(t.Context(), mark, ""); !errors.Is(err, track.ErrMarkLost) || !strings.Contains(err.Error(), "replaced") {
				t.Errorf("changes: %v", err)
			}
			if _, err := l.Cut(t.Context()); !errors.Is(err, track.ErrMarkLost) {
				t.Errorf("cut: %v", err)
			}
			again, err := openPath(t.Context(), dev, bpf.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			if got, err := again.Changes(t.Context(), mark, ""); !errors.Is(err, track.ErrMarkLost) {
				t.Errorf("the mark is good again: %v, %v", got, err)
			}
			changes(t, again, cut(t, again), "")
			replaceTable(t, "upper", "0 32768 linear /dev/mapper/lower 0")
		})
	}
}

// Tracking of a disk that is written to past every filesystem begins when the writes
// from before have ended: nobody knows what they change.
func TestTrackingOfARawDiskBeginsWithoutWritesInFlight(t *testing.T) {
	for _, s := range slowStacks()[:2] {
		t.Run(s.name, func(t *testing.T) {
			dev := s.make(t)
			d := guest.OpenDirect(t, dev)
			written := make(chan error, 1)
			go func() {
				_, err := d.WriteAt(block.AlignedBuffer(granule), 4<<20)
				written <- err
			}()
			awaitInFlight(t, dev)
			openTrackerWith(t, dev, drained(dev))
			if inFlight(t, dev) {
				t.Error("a write from before is in flight, and where it goes is not known")
			}
			if err := <-written; err != nil {
				t.Fatal(err)
			}
		})
	}
}

// drained are the options of a mirror.
func drained(dev string) bpf.Options {
	return bpf.Options{Drain: func(ctx context.Context) error { return tracking.Drain(ctx, dev, time.Minute) }}
}

// A write that a device above sends on as it is (md raid0) is not queued again on the
// device below it, and is a change of that one all the same.
func TestWriteThroughADeviceAboveIsSeen(t *testing.T) {
	above := array(t, "raid0")
	// Before Linux 6.5 md only sends on as it is what it does not count.
	guest.WriteFile(t, "/sys/block/md_tidemark/queue/iostats", "0")
	d := guest.OpenDirect(t, above)
	l := openTracker(t, "/dev/mapper/member0")
	before := cut(t, l)
	// The first 64 KiB of each 128 are on the first member.
	if _, err := d.WriteAt(block.AlignedBuffer(granule), 8<<20+granule); err != nil {
		t.Fatal(err)
	}
	want := extent.NewSet(extent.Extent{Off: 4<<20 + granule, Len: granule})
	mustHold(t, "through md", changes(t, l, before, cut(t, l)), want)
}

// What an array with parity writes for itself is no change of it.
func TestResyncChangesNothing(t *testing.T) {
	dev := array(t, "raid5")
	l := openTracker(t, dev)
	before := cut(t, l)
	const md = "/sys/block/md_tidemark/md/"
	// Parity that is wrong everywhere is written everywhere.
	guest.Run(t, "dd", "if=/dev/urandom", "of=/dev/mapper/member1", "bs=1M", "count=24", "oflag=direct")
	guest.WriteFile(t, md+"sync_action", "repair")
	for busy := true; busy; time.Sleep(10 * time.Millisecond) {
		action, err := os.ReadFile(md + "sync_action")
		if err != nil {
			t.Fatal(err)
		}
		busy = strings.TrimSpace(string(action)) != "idle"
	}
	if n, err := os.ReadFile(md + "mismatch_cnt"); err != nil || strings.TrimSpace(string(n)) == "0" {
		t.Fatalf("nothing was repaired: %s, %v", n, err)
	}
	if got := changes(t, l, before, cut(t, l)); !got.Empty() {
		t.Errorf("%d bytes changed, first at %v", got.Bytes(), got.Extents()[0])
	}
}
