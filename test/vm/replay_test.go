package vm

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"

	"tidemark/test/vm/content"
	"tidemark/test/vm/logwrites"
)

// tornPer is how many disks with a part of the unflushed writes are tried between one
// flush and the next.
const tornPer = 2

// history is where in the log of a disk a replay is: what the mirror on the disk may
// be a copy of at that moment.
type history struct {
	contents [][]byte
	// oldest and newest are the steps whose content the target may have; below zero
	// it has no content to keep yet.
	oldest, newest int
}

// pass notes a mark that the guest set.
func (h *history) pass(t *testing.T, name string) {
	kind, number, ok := strings.Cut(name, "-")
	step, err := strconv.Atoi(number)
	if !ok || err != nil {
		return // the kernel's own, at the end
	}
	switch kind {
	case "begin":
		h.newest = step
	case "end":
		if h.newest != step {
			t.Fatalf("the marks are out of order: %s", name)
		}
		h.oldest = step
	}
}

// replayed replays a log from the first run on. At every moment at which something
// became durable, and at some between, the mirror on the disk is opened as after a
// power cut: it must be the old one or the new one, and the next run must bring it up
// to date.
func replayed(t *testing.T, path, kind string, rng *rand.Rand) {
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	log, err := logwrites.Read(file, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	h := &history{oldest: -1, newest: -1}
	for step := range content.Steps {
		h.contents = append(h.contents, content.After(step))
	}
	bench := newCrashBench(t, kind)
	found := map[string]int{}
	replay := log.Replay(loggedSize)
	moments, torn := 0, 0
	for {
		e, more, err := replay.Advance()
		if err != nil {
			t.Fatal(err)
		}
		if !more {
			break
		}
		h.pass(t, e.Name)
		if h.newest < 0 {
			continue
		}
		moments++
		found[bench.crash(t, fmt.Sprintf("entry %d", replay.Next), replay.Disk, h)]++
		for i := range tornPer {
			disk, err := replay.Torn(rng)
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Equal(disk, replay.Disk) {
				continue
			}
			torn++
			found[bench.crash(t, fmt.Sprintf("behind entry %d, variant %d", replay.Next, i), disk, h)]++
		}
	}
	t.Logf("%d entries, %d moments, %d with a part of the next writes: %v", len(log.Entries), moments, torn, found)
	if h.oldest != content.Steps-1 {
		t.Errorf("the log ends in run %d", h.oldest)
	}
	for step := 1; step < content.Steps; step++ {
		for _, what := range []string{"old", "new"} {
			if name := fmt.Sprintf("run %d %s", step, what); found[name] == 0 {
				t.Errorf("never seen: %s", name)
			}
		}
	}
	if found["unfinished"] == 0 || found["nothing yet"] == 0 {
		t.Errorf("the first copy was not caught: %v", found)
	}
}
