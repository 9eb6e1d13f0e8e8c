//go:build linux

package tracker_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/test/vm/guest"
)

// slowStacks complete a write a second after it was queued. (dm-delay itself is not
// among them: it counts a write as in flight only after the delay.)
func slowStacks() []stack {
	return []stack{
		{"dm-linear on dm-delay", func(t testing.TB) string {
			return guest.Mapper(t, "linear", "0 65536 linear "+slow(t)+" 0")
		}},
		{"dm-crypt on dm-delay", func(t testing.TB) string {
			guest.Modprobe(t, "dm-crypt")
			return guest.Mapper(t, "crypt", "0 65536 crypt aes-xts-plain64 "+strings.Repeat("42", 32)+" 0 "+slow(t)+" 0")
		}},
		{"null_blk", func(t testing.TB) string {
			// irqmode 2: a timer completes requests
			return nullDevice(t, map[string]string{"size": "32", "irqmode": "2", "completion_nsec": "1000000000"})
		}},
		{"scsi_debug", slowSCSI},
	}
}

func slow(t testing.TB) string {
	guest.Modprobe(t, "dm-delay")
	disk := guest.Disk(t, "data")
	return guest.Mapper(t, "delay", "0 65536 delay "+disk+" 0 0 "+disk+" 0 1000")
}

func slowSCSI(t testing.TB) string {
	guest.Run(t, "modprobe", "scsi_debug", "dev_size_mb=32")
	t.Cleanup(func() {
		guest.WriteFile(t, "/sys/bus/pseudo/drivers/scsi_debug/delay", "0")
		guest.Run(t, "rmmod", "scsi_debug")
	})
	const pattern = "/sys/bus/pseudo/drivers/scsi_debug/adapter0/host*/target*/*/block/*"
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		if len(found) == 1 {
			guest.WriteFile(t, "/sys/bus/pseudo/drivers/scsi_debug/delay", "250") // jiffies, at 250 a second
			return "/dev/" + filepath.Base(found[0])
		}
	}
	t.Fatal("the disk of scsi_debug did not appear")
	return ""
}

// A write in flight at a mark is among the changes since that mark, although it was
// queued before: who reads the block right after the mark may read the old content.
func TestWriteInFlightAtAMark(t *testing.T) {
	for _, s := range slowStacks() {
		t.Run(s.name, func(t *testing.T) {
			dev := s.make(t)
			d := guest.OpenDirect(t, dev)
			l := openTracker(t, dev)
			learnt := 0
			for i := range int64(3) {
				before := cut(t, l)
				want := extent.Extent{Off: (i + 1) * 4 << 20, Len: 64 << 10}
				written := make(chan error, 1)
				go func() {
					_, err := d.WriteAt(block.AlignedBuffer(int(want.Len)), want.Off)
					written <- err
				}()
				awaitInFlight(t, dev)
				mark := cut(t, l)
				still := inFlight(t, dev)
				if err := <-written; err != nil {
					t.Fatal(err)
				}
				if !still {
					continue // a slow guest: the write may have ended before the mark
				}
				learnt++
				after := cut(t, l)
				mustHold(t, "queued before the mark", changes(t, l, before, mark), extent.NewSet(want))
				mustHold(t, "completed after the mark", changes(t, l, mark, after), extent.NewSet(want))
			}
			if learnt == 0 {
				t.Error("no write was in flight at a mark")
			}
		})
	}
}

// awaitInFlight waits until a write is in flight.
func awaitInFlight(t *testing.T, dev string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if inFlight(t, dev) {
			return
		}
	}
	t.Fatal("no write is in flight")
}

// inFlight reports whether a write is in flight (Documentation/ABI/stable/sysfs-block).
func inFlight(t *testing.T, dev string) bool {
	t.Helper()
	real, err := filepath.EvalSymlinks(dev)
	if err != nil {
		t.Fatal(err)
	}
	id, err := block.Identify(real)
	if err != nil {
		t.Fatal(err)
	}
	counts, err := os.ReadFile("/sys/block/" + id.Disk + "/inflight")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(counts))[1] != "0"
}
