package view

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

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
