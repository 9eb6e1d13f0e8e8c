package view

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/linux/mounts"
)

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
