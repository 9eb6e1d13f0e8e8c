package view

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/linux/mounts"
)

// errNoCounters says that the kernel does not count this device's writes.
var errNoCounters = errors.New("the kernel does not count its writes")

// counters are what the kernel has counted on a device since it appeared
// (Documentation/block/stat.rst), in sectors of 512 bytes. They grow before the
// program hears that its request is done; the numbers of requests may grow after.
type counters struct {
	read      uint64
	written   uint64
	discarded uint64 // 0 before Linux 4.18
}

// readCounters reads a device's counters, and proves that it has any by reading
// from it: queue/iostats switches them off for most drivers, some count all the
// same, and some never do. The counters of a partition leave out what is written
// to its place through the whole disk.
func readCounters(path string, dev mounts.Dev) (counters, error) {
	before, err := loadCounters(dev)
	if err != nil {
		return counters{}, err
	}
	if err := touch(path); err != nil {
		return counters{}, fmt.Errorf("%w, as far as can be told: %w", errNoCounters, err)
	}
	after, err := loadCounters(dev)
	if err != nil {
		return counters{}, err
	}
	if after.read == before.read {
		return counters{}, errNoCounters
	}
	return after, nil
}

func loadCounters(dev mounts.Dev) (counters, error) {
	b, err := os.ReadFile("/sys/dev/block/" + dev.String() + "/stat")
	if err != nil {
		return counters{}, err
	}
	return parseCounters(string(b))
}

// writesInFlight returns how many writes the device works on, as the kernel counts
// them (Documentation/ABI/stable/sysfs-block, inflight: reads, then writes).
func writesInFlight(dev mounts.Dev) (uint64, error) {
	b, err := os.ReadFile("/sys/dev/block/" + dev.String() + "/inflight")
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(b))
	if len(fields) != 2 {
		return 0, fmt.Errorf("inflight: %d fields, want 2", len(fields))
	}
	n, err := strconv.ParseUint(fields[1], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("inflight: %w", err)
	}
	return n, nil
}

// touch reads a block past the page cache.
func touch(path string) error {
	d, err := block.Open(path, block.Options{Direct: true})
	if err != nil {
		return err
	}
	defer d.Close()
	_, err = d.ReadAt(block.AlignedBuffer(4096), 0)
	return err
}

func parseCounters(text string) (counters, error) {
	fields := strings.Fields(text)
	if len(fields) < 11 {
		return counters{}, fmt.Errorf("stat: %d fields, want 11 or more", len(fields))
	}
	n := make([]uint64, max(len(fields), 15))
	for i, f := range fields {
		v, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			return counters{}, fmt.Errorf("stat: field %d: %w", i+1, err)
		}
		n[i] = v
	}
	return counters{read: n[2], written: n[6], discarded: n[13]}, nil
}

// fileState is what changes when a file is written to.
type fileState struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

func stateOf(path string) (fileState, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fileState{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return fileState{uint64(st.Dev), st.Ino, st.Size, st.Mtim, st.Ctim}, nil
}

// Clocks of filesystems: most stamp with the kernel's tick, at most 10 ms; some
// with whole seconds, FAT with every other.
const (
	fineStamp   = 20 * time.Millisecond
	coarseStamp = 2100 * time.Millisecond
)

// fresh returns how long a later write might still get the same stamp.
func (s fileState) fresh(now time.Time) time.Duration {
	stamp := fineStamp
	if s.mtime.Nsec == 0 && s.ctime.Nsec == 0 {
		stamp = coarseStamp
	}
	last := time.Unix(s.mtime.Unix())
	if c := time.Unix(s.ctime.Unix()); c.After(last) {
		last = c
	}
	left := stamp - now.Sub(last)
	return min(left, stamp) // a stamp in the future tells nothing more
}
