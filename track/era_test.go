package track

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestMarksOfAnEraAreReadAsTheyAreWritten(t *testing.T) {
	good := eraMoment{lineage: "0123456789abcdef", era: 17}
	if got, err := good.mark().parseEra(); err != nil || got != good || !good.mark().Valid() || good.mark().Kind() != KindEra {
		t.Errorf("%s: %v, %v", good.mark(), got, err)
	}
	for _, bad := range []Mark{
		"", "era", "era:0123456789abcdef", "era:0123456789abcdef:0", "era:0123456789abcdef:017", "era:0123456789ABCDEF:17",
		"era:0123456789abcdef:4294967296", "era:0123456789abcdef:17:0+4096", "bpf:0123456789abcdef:17",
	} {
		if got, err := bad.parseEra(); !errors.Is(err, ErrBadMark) {
			t.Errorf("%q: %v, %v", bad, got, err)
		}
	}
}

func TestMarksOfOtherTrackersAreLostNotBad(t *testing.T) {
	e, err := newEra(t.Context(), "/dev/x", EraOptions{StateDir: t.TempDir()}.withDefaults(), newEraMachine(t, nil))
	must(t, err)
	defer func() { must(t, e.Close()) }()
	for _, m := range []Mark{"scan", "bpf:0123456789abcdef:17", "era:0123456789abcdef:17"} {
		if _, err := e.Changes(t.Context(), m, ""); !errors.Is(err, ErrMarkLost) {
			t.Errorf("%s: %v", m, err)
		}
	}
	if _, err := e.Changes(t.Context(), "nonsense", ""); !errors.Is(err, ErrBadMark) {
		t.Errorf("nonsense: %v", err)
	}
	if _, err := (&Live{}).moment("era:0123456789abcdef:17"); !errors.Is(err, ErrMarkLost) {
		t.Errorf("an era for the tracking by eBPF: %v", err)
	}
}

func TestDevicesThatCannotBeAskedAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*eraFacts)
		want  error
	}{
		"discards":      {func(f *eraFacts) { f.takesDiscards = true }, ErrDiscards},
		"no statistics": {func(f *eraFacts) { f.noStatistics = true }, ErrEraUnfit},
		"full metadata": {func(f *eraFacts) { f.free = 10 }, ErrEraUnfit},
	} {
		t.Run(name, func(t *testing.T) {
			m := newEraMachine(t, nil)
			c.spoil(&m.device)
			if _, err := newEra(t.Context(), "/dev/x", EraOptions{StateDir: t.TempDir()}.withDefaults(), m); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
}

// What cannot be read of an earlier run loses the marks, and no more.
func TestDamagedLineageLosesTheMarks(t *testing.T) {
	m, state := newEraMachine(t, nil), t.TempDir()
	c := &eraMirror{m: m, state: state, copy: make([]byte, len(m.data))}
	first := c.quiet(t)
	if err := c.quietChanges(t, first); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(state, "era", "*.json"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	must(t, os.WriteFile(files[0], []byte("{"), 0o600))
	if err := c.quietChanges(t, first); !errors.Is(err, ErrMarkLost) {
		t.Errorf("a damaged file: %v", err)
	}
}

// quiet makes a mark while nobody writes.
func (c *eraMirror) quiet(t *testing.T) Mark {
	t.Helper()
	e, err := newEra(t.Context(), "/dev/x", EraOptions{StateDir: c.state}.withDefaults(), c.m)
	must(t, err)
	defer func() { must(t, e.Close()) }()
	cut, err := e.Cut(t.Context())
	must(t, err)
	_, err = e.Changes(t.Context(), cut.Mark, "")
	must(t, err)
	must(t, e.Keep(t.Context(), "owner", cut.Mark, true))
	return cut.Mark
}

func (c *eraMirror) quietChanges(t *testing.T, since Mark) error {
	t.Helper()
	e, err := newEra(t.Context(), "/dev/x", EraOptions{StateDir: c.state}.withDefaults(), c.m)
	must(t, err)
	defer func() { must(t, e.Close()) }()
	_, err = e.Changes(t.Context(), since, "")
	return err
}
