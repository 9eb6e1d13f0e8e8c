package history_test

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"tidemark/track"
	"tidemark/track/history"
)

func TestMarksAreReadAsTheyAreWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := history.Moment{
			Generation: fmt.Sprintf("%016x", rapid.Uint64().Draw(t, "generation")),
			Epoch:      rapid.Uint64Min(1).Draw(t, "epoch"),
		}
		if rapid.Bool().Draw(t, "partition") {
			m.Slice.Off = rapid.Int64Range(0, 1<<50).Draw(t, "off")
			m.Slice.Len = rapid.Int64Range(1, 1<<50).Draw(t, "len")
		}
		if got, err := history.ParseMark(m.Mark("bpf"), "bpf"); err != nil || got != m || !m.Mark("bpf").Valid() {
			t.Fatalf("%v is read as %v: %v", m, got, err)
		}
	})
}

func FuzzMark(f *testing.F) {
	f.Add("bpf:0123456789abcdef:7")
	f.Add("bpf:0123456789abcdef:7:512+4096")
	f.Fuzz(func(t *testing.T, s string) {
		m, err := history.ParseMark(track.Mark(s), "bpf")
		if err == nil && m.Mark("bpf") != track.Mark(s) {
			t.Errorf("%q is read as %q", s, m.Mark("bpf"))
		}
	})
}
