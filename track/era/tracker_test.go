package era

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"tidemark/format/era"
	"tidemark/track"
	"tidemark/track/history"
)

func TestMarksOfAnEraAreReadAsTheyAreWritten(t *testing.T) {
	good := history.Moment{Generation: "0123456789abcdef", Epoch: 17}
	if got, err := parse(good.Mark(Kind)); err != nil || got != good || !good.Mark(Kind).Valid() || good.Mark(Kind).Kind() != Kind {
		t.Errorf("%s: %v, %v", good.Mark(Kind), got, err)
	}
	for _, bad := range []track.Mark{
		"", "era", "era:0123456789abcdef", "era:0123456789abcdef:0", "era:0123456789abcdef:017", "era:0123456789ABCDEF:17",
		"era:0123456789abcdef:4294967296", "era:0123456789abcdef:17:0+4096",
	} {
		if got, err := parse(bad); !errors.Is(err, track.ErrBadMark) {
			t.Errorf("%q: %v, %v", bad, got, err)
		}
	}
}

func TestMarksOfOtherTrackersAreLostNotBad(t *testing.T) {
	e, err := newTracker(t.Context(), "/dev/x", Options{StateDir: t.TempDir()}.withDefaults(), newMachine(t, nil))
	must(t, err)
	defer func() { must(t, e.Close()) }()
	for _, m := range []track.Mark{"scan", "bpf:0123456789abcdef:17", "era:0123456789abcdef:17"} {
		if _, err := e.Changes(t.Context(), m, ""); !errors.Is(err, track.ErrMarkLost) {
			t.Errorf("%s: %v", m, err)
		}
		if err := e.Vouch(t.Context(), m); !errors.Is(err, track.ErrMarkLost) {
			t.Errorf("%s: vouched for: %v", m, err)
		}
	}
	if _, err := e.Changes(t.Context(), "nonsense", ""); !errors.Is(err, track.ErrBadMark) {
		t.Errorf("nonsense: %v", err)
	}
}

func TestDevicesThatCannotBeAskedAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*facts)
		want  error
	}{
		"discards":      {func(f *facts) { f.takesDiscards = true }, ErrDiscards},
		"no statistics": {func(f *facts) { f.noStatistics = true }, ErrUnfit},
		"full metadata": {func(f *facts) { f.free = 10 }, ErrUnfit},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, nil)
			c.spoil(&m.device)
			if _, err := newTracker(t.Context(), "/dev/x", Options{StateDir: t.TempDir()}.withDefaults(), m); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
}

// What cannot be read of an earlier run loses the marks, and no more.
func TestDamagedLineageLosesTheMarks(t *testing.T) {
	m, state := newMachine(t, nil), t.TempDir()
	c := &mirror{m: m, state: state, copy: make([]byte, len(m.data))}
	first := c.quiet(t)
	if err := c.quietChanges(t, first); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(state, "era", "*.json"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	must(t, os.WriteFile(files[0], []byte("{"), 0o600))
	if err := c.quietChanges(t, first); !errors.Is(err, track.ErrMarkLost) {
		t.Errorf("a damaged file: %v", err)
	}
}

// Content that was replaced while the era device was down loses the marks.
func TestDataReplacedPastTheDeviceLosesTheMarks(t *testing.T) {
	m, state := newMachine(t, rand.New(rand.NewPCG(1, 2))), t.TempDir()
	for b := range era.Block(modelBlocks) {
		m.written[b] = 1
	}
	c := &mirror{m: m, state: state, copy: make([]byte, len(m.data))}
	first := c.quiet(t)
	must(t, c.quietChanges(t, first))
	m.activate()
	for i := range m.data {
		m.data[i]++
	}
	if err := c.quietChanges(t, first); !errors.Is(err, track.ErrMarkLost) || !strings.Contains(err.Error(), "not through the era device") {
		t.Errorf("a mark of before: %v", err)
	}
}

// Of several processes that begin a history of a device at once, one does: what another
// has written down is not written over.
func TestHistoryThatAnotherProcessBeganIsNotWrittenOver(t *testing.T) {
	const processes = 16
	for range 8 {
		state := t.TempDir()
		facts := newMachine(t, nil).device
		errs := make([]error, processes)
		ids := make([]string, processes)
		var all sync.WaitGroup
		for i := range processes {
			id, err := history.NewID()
			must(t, err)
			ids[i] = id
			all.Go(func() {
				l := lineage{Version: lineageVersion, ID: id, Newest: 1, Facts: facts}
				errs[i] = l.save(t.Context(), state, "")
			})
		}
		all.Wait()
		onDisk, err := loadLineage(state, facts.key())
		must(t, err)
		for i, err := range errs {
			if ours := ids[i] == onDisk.ID; ours != (err == nil) || !ours && !errors.Is(err, track.ErrMarkLost) {
				t.Errorf("on disk is the history of process %d: %v; it was told %v", i, ours, err)
			}
		}
	}
}

// quiet makes a mark while nobody writes.
func (c *mirror) quiet(t *testing.T) track.Mark {
	t.Helper()
	e, err := newTracker(t.Context(), "/dev/x", Options{StateDir: c.state}.withDefaults(), c.m)
	must(t, err)
	defer func() { must(t, e.Close()) }()
	cut, err := e.Cut(t.Context())
	must(t, err)
	_, err = e.Changes(t.Context(), cut.Mark, "")
	must(t, err)
	must(t, e.Keep(t.Context(), "owner", cut.Mark, true))
	return cut.Mark
}

func (c *mirror) quietChanges(t *testing.T, since track.Mark) error {
	t.Helper()
	e, err := newTracker(t.Context(), "/dev/x", Options{StateDir: c.state}.withDefaults(), c.m)
	must(t, err)
	defer func() { must(t, e.Close()) }()
	_, err = e.Changes(t.Context(), since, "")
	if vouched := e.Vouch(t.Context(), since); (vouched == nil) != (err == nil) {
		t.Errorf("changes since %s: %v, vouched for: %v", since, err, vouched)
	}
	return err
}
