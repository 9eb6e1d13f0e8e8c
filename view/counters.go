package view

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/linux/mounts"
)

// errNoCounters says that the kernel does not count this device's writes.
var errNoCounters = errors.New("the kernel does not count its writes")

// counters are what the kernel has counted on a device since it appeared
// (Documentation/block/stat.rst), in sectors of 512 bytes. They grow before the
// writer hears that its write is done; the numbers of requests may grow after it.
type counters struct {
	written   uint64
	discarded uint64 // 0 before Linux 4.18
}

// readCounters reads a device's counters. Those of a partition leave out what is
// written to its place through the whole disk.
func readCounters(d mounts.Dev) (counters, error) {
	dir := "/sys/dev/block/" + d.String()
	if on, err := countsWrites(dir); err != nil || !on {
		return counters{}, errors.Join(errNoCounters, err)
	}
	b, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return counters{}, err
	}
	return parseCounters(string(b))
}

// countsWrites looks at queue/iostats, which is the whole disk's.
func countsWrites(dir string) (bool, error) {
	for _, p := range []string{dir + "/queue/iostats", dir + "/../queue/iostats"} {
		b, err := os.ReadFile(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return strings.TrimSpace(string(b)) != "0", err
	}
	return true, nil
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
	return counters{written: n[6], discarded: n[13]}, nil
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
