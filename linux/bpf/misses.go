package bpf

import (
	"fmt"
	"strings"
	"time"
)

// Misses counts what the kernel skipped. Two readings that are the same say that nothing was
// skipped in between.
type Misses struct {
	// Queue is 0 where each change was marked, by a program or a copy of it; else what was skipped
	// of the programs of which some change escaped all copies.
	Queue    uint64
	Complete uint64 // completions that may not have been marked
}

const (
	settleTries = 100 // readings, until what is counted in two places is in both
	settlePoll  = time.Millisecond
)

// Misses reads what the kernel skipped of the programs of a disk so far; bio says whether
// the disk completes bios.
func (f *Facility) Misses(bio bool) (Misses, error) {
	for try := 1; ; try++ {
		c, err := f.counts()
		if err != nil {
			return Misses{}, err
		}
		m := c.misses(bio)
		if m.Queue == 0 || f.began != beganCopies || try == settleTries {
			return m, nil
		}
		time.Sleep(settlePoll)
	}
}

// counts are readings of the counters, by the names of the programs without those of the copies.
type counts struct {
	skipped map[string]uint64 // by the kernel: of copies, the first
	caught  map[string]uint64 // of these, those that another copy saw
}

// counts reads the counters; what was caught first, because it is counted as skipped before.
func (f *Facility) counts() (counts, error) {
	c := counts{skipped: map[string]uint64{}, caught: map[string]uint64{}}
	if f.began == beganCopies {
		for kind, name := range copied() {
			var n uint64
			counter := f.maps[caughtBio]
			if name == progIssue {
				counter = f.maps[mapCaught]
			}
			if counter == nil {
				continue // of programs that are not loaded
			}
			if err := counter.Lookup(uint32(kind), &n); err != nil {
				return c, fmt.Errorf("bpf: counter of what the copies of %s caught: %w", name, err)
			}
			c.caught[name] = n
		}
	}
	for name, p := range f.progs {
		s, err := p.Stats()
		if err != nil {
			return c, fmt.Errorf("bpf: counters of %s: %w", name, err)
		}
		c.skipped[strings.TrimSuffix(name, copyFirst)] = s.RecursionMisses
	}
	return c, nil
}

// misses is Misses, of these counters.
func (c counts) misses(bio bool) Misses {
	if bio {
		return Misses{Queue: c.unmarked(progQueue, progOwnMap, progSwap), Complete: c.skipped[progBioDone] + c.skipped[progRemap]}
	}
	return Misses{Queue: c.unmarked(progIssue, progSwap), Complete: c.skipped[progReqDone]}
}

// unmarked returns 0 when whatever was skipped of these programs was caught by a copy: in all the
// time since they are attached nothing went unmarked. Else it cannot be told when that was, and
// all counts that was skipped.
func (c counts) unmarked(names ...string) (sum uint64) {
	all := true
	for _, name := range names {
		sum += c.skipped[name]
		all = all && c.skipped[name] == c.caught[name]
	}
	if all {
		return 0
	}
	return sum
}
