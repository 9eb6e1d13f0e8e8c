package view

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestFreshFileIsOneWhoseClockMayNotHaveTicked(t *testing.T) {
	now := time.Unix(1000, 500)
	at := func(sec, nsec int64) fileState {
		return fileState{mtime: unix.Timespec{Sec: sec, Nsec: nsec}, ctime: unix.Timespec{Sec: sec, Nsec: nsec}}
	}
	for name, c := range map[string]struct {
		s     fileState
		fresh bool
	}{
		"just now":           {at(1000, 400), true},
		"a second ago":       {at(999, 400), false},
		"whole seconds":      {at(999, 0), true},
		"whole seconds, old": {at(990, 0), false},
		"in the future":      {at(2000, 1), true},
	} {
		left := c.s.fresh(now)
		if (left > 0) != c.fresh || left > coarseStamp {
			t.Errorf("%s: %v left", name, left)
		}
	}
}
