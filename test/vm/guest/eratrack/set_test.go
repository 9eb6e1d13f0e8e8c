//go:build linux

package eratrack_test

import (
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/test/vm/guest"
	"tidemark/track"
)

// journal notes which writes were given to the device after a moment and ended
// before another.
type journal struct {
	mu   sync.Mutex
	done []noted
}

type noted struct {
	extent     extent.Extent
	begun, end time.Time
}

// between returns what was written wholly between two moments.
func (j *journal) between(from, to time.Time) extent.Set {
	j.mu.Lock()
	defer j.mu.Unlock()
	var list []extent.Extent
	for _, n := range j.done {
		if n.begun.After(from) && n.end.Before(to) {
			list = append(list, n.extent)
		}
	}
	return extent.NewSet(list...)
}

// write writes at random until stop is closed.
func (j *journal) write(t *testing.T, path string, stop <-chan struct{}) {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	buf := block.AlignedBuffer(256 << 10)
	for {
		select {
		case <-stop:
			return
		default:
		}
		e := extent.Extent{Off: rand.Int64N(23<<20/512) * 512, Len: (1 + rand.Int64N(int64(len(buf))/512)) * 512}
		begun := time.Now()
		if _, err := f.WriteAt(buf[:e.Len], e.Off); err != nil {
			t.Error(err)
			return
		}
		n := noted{e, begun, time.Now()}
		j.mu.Lock()
		j.done = append(j.done, n)
		j.mu.Unlock()
	}
}

// Every write between two marks is in the set of their changes, while others make
// checkpoints and the device is suspended and resumed.
func TestNoWriteIsMissing(t *testing.T) {
	s := made(t, "set", t.TempDir())
	e, err := s.opened(t)
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, e)
	var j journal
	stop := make(chan struct{})
	var writers sync.WaitGroup
	for range 3 {
		writers.Go(func() { j.write(t, s.path(), stop) })
	}
	type moment struct {
		mark          track.Mark
		before, after time.Time
	}
	cut := func() moment {
		before := time.Now()
		c, err := e.Cut(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return moment{c.Mark, before, time.Now()}
	}
	marks := []moment{cut()}
	written := int64(0)
	for i := range 25 {
		switch i % 3 {
		case 1:
			guest.Run(t, "dmsetup", "message", s.name, "0", "checkpoint")
		case 2:
			guest.Run(t, "dmsetup", "suspend", s.name)
			guest.Run(t, "dmsetup", "resume", s.name)
		}
		now := cut()
		from := marks[rand.IntN(len(marks))]
		set, err := e.Changes(t.Context(), from.mark, now.mark)
		if err != nil {
			t.Fatal(err)
		}
		want := j.between(from.after, now.before)
		if missing := want.Subtract(set); !missing.Empty() {
			t.Fatalf("%v is missing", missing.Extents())
		}
		written += want.Bytes()
		marks = append(marks, now)
	}
	close(stop)
	writers.Wait()
	if written == 0 {
		t.Error("nothing was written")
	}
	t.Logf("%d writes", len(j.done))
}
