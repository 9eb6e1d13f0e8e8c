package track_test

import (
	"errors"
	"testing"

	"tidemark/track"
)

func TestMarkIsReadByTheTrackerThatMadeItAlone(t *testing.T) {
	m := track.NewMark("bpf", "0123456789abcdef:7:512+4096")
	if body, err := m.BodyOf("bpf"); err != nil || track.NewMark("bpf", body) != m || !m.Valid() || m.Kind() != "bpf" || m.Body() != body {
		t.Errorf("%s is read as %q: %v", m, body, err)
	}
	for _, other := range []track.Mark{m, "scan"} {
		if _, err := other.BodyOf("era"); !errors.Is(err, track.ErrMarkLost) {
			t.Errorf("%s, read as a mark of eras: %v", other, err)
		}
	}
	for _, bad := range []track.Mark{"", ":", "bpf", "bpf:", ":1", "BPF:1", "bpf:1 2", "bpf:1\n", "scan ", "bpf:\u00e9"} {
		if _, err := bad.BodyOf("bpf"); bad.Valid() || !errors.Is(err, track.ErrBadMark) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzMark(f *testing.F) {
	f.Add("bpf:0123456789abcdef:7")
	f.Add("scan")
	f.Fuzz(func(t *testing.T, s string) {
		m := track.Mark(s)
		if m.Valid() && m.Kind() != track.KindScan && track.NewMark(m.Kind(), m.Body()) != m {
			t.Errorf("%q is kind %q and body %q", s, m.Kind(), m.Body())
		}
	})
}
