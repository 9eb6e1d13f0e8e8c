package view

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestCountersOfEveryKernelAreParsed(t *testing.T) {
	for text, want := range map[string]counters{
		"1 2 3 4 5 6 7 8 9 10 11":                       {3, 7, 0},
		"1 2 3 4 5 6 7 8 9 10 11 12 13 14 15":           {3, 7, 14},
		"  1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17\n": {3, 7, 14},
	} {
		if got, err := parseCounters(text); err != nil || got != want {
			t.Errorf("%q: %v, %v, want %v", text, got, err, want)
		}
	}
}

func FuzzParseCounters(f *testing.F) {
	f.Add("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17\n")
	f.Add("1 2 3 4 5 6 7 8 9 10 11")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parseCounters(text)
		if err != nil && c != (counters{}) {
			t.Errorf("%v along with %v", c, err)
		}
	})
}

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
