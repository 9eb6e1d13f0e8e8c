package bpf

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"tidemark/track"
)

func TestMarksAreReadAsTheyAreWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := moment{
			generation: fmt.Sprintf("%016x", rapid.Uint64().Draw(t, "generation")),
			epoch:      rapid.Uint64Min(1).Draw(t, "epoch"),
		}
		if rapid.Bool().Draw(t, "partition") {
			m.slice.Off = rapid.Int64Range(0, 1<<50).Draw(t, "off")
			m.slice.Len = rapid.Int64Range(1, 1<<50).Draw(t, "len")
		}
		if got, err := parse(m.mark()); err != nil || got != m || !m.mark().Valid() {
			t.Fatalf("%v is read as %v: %v", m, got, err)
		}
	})
}

func FuzzMark(f *testing.F) {
	f.Add("bpf:0123456789abcdef:7")
	f.Add("bpf:0123456789abcdef:7:512+4096")
	f.Fuzz(func(t *testing.T, s string) {
		m, err := parse(track.Mark(s))
		if err == nil && m.mark() != track.Mark(s) {
			t.Errorf("%q is read as %q", s, m.mark())
		}
	})
}
