package state_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"tidemark/format/state"
)

var id = state.ID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}

func sample(update uint64, size int64) state.State {
	return state.State{
		ID: id, Update: update, Size: size, BlockSize: 4096, Complete: true,
		Source: state.Source{Path: "/dev/loop0", Stable: "loop:/images/a.img"},
		Mark:   "bpf:0123456789abcdef:7",
		Time:   time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC),
		Runs:   []state.Run{{Tracker: "bpf", View: "freeze", Changed: 4096, Outcome: "ok"}},
	}
}

// TestOlderStatesAreRead takes one that a tidemark of before kinds and inodes wrote.
func TestOlderStatesAreRead(t *testing.T) {
	line := `{"version":1,"id":"` + hex.EncodeToString(id[:]) + `","update":7,"size":8192,"block_size":4096,"complete":true,` +
		`"source":{"path":"/dev/loop0"},"target":{"size":8192,"mtime":1700000000000000000},"mark":"bpf:0123456789abcdef:7","time":"2026-11-21T08:00:00Z"}` + "\n"
	s, err := state.Decode([]byte(line + "blake3:b7ffdb6b061e5fcc1ac8209e1640706e\n"))
	if err != nil || s.Update != 7 || s.Target.MTime != 1700000000000000000 || s.Target.Kind != "" || s.ID != id {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestStatesAreCheckedBeforeTheyAreTrusted(t *testing.T) {
	good, err := sample(3, 40000).Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := state.Decode(good); err != nil {
		t.Fatal(err)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if _, err := state.Decode(bad); err == nil {
			t.Fatalf("byte %d changed: no error", i)
		}
		if _, err := state.Decode(good[:i]); err == nil {
			t.Fatalf("cut to %d bytes: no error", i)
		}
	}
	for _, change := range []func(*state.State){
		func(s *state.State) { s.Size = -1 },
		func(s *state.State) { s.Copied = s.Size + 1 },
		func(s *state.State) { s.BlockSize = 5000 },
		func(s *state.State) { s.BlockSize = 1 << 40 },
		func(s *state.State) { s.Runs = make([]state.Run, state.MaxRuns+1) },
	} {
		s := sample(1, 40000)
		change(&s)
		b, err := s.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := state.Decode(b); !errors.Is(err, state.ErrDamaged) {
			t.Errorf("%+v: %v", s, err)
		}
	}
}

func TestTheHistoryIsBounded(t *testing.T) {
	var s state.State
	for i := range 3 * state.MaxRuns {
		s.AddRun(state.Run{Changed: int64(i)})
	}
	if len(s.Runs) != state.MaxRuns || s.Runs[len(s.Runs)-1].Changed != 3*state.MaxRuns-1 {
		t.Fatalf("%d runs, the last %+v", len(s.Runs), s.Runs[len(s.Runs)-1])
	}
}

func FuzzState(f *testing.F) {
	b, err := sample(1, 40000).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := state.Decode(b)
		if err != nil {
			return
		}
		once, err := s.Encode()
		if err != nil {
			t.Fatal(err)
		}
		s, err = state.Decode(once)
		if err != nil {
			t.Fatalf("a state that parses does not parse again: %v", err)
		}
		if twice, err := s.Encode(); err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("a state does not read back as written: %v", err)
		}
	})
}

// Programs take a time that is there for a time that was.
func TestTimesThatAreNotKnownAreLeftOut(t *testing.T) {
	b, err := state.State{ID: id, BlockSize: 4096}.Encode()
	if err != nil || bytes.Contains(b, []byte("0001-01-01")) {
		t.Errorf("%s, %v", b, err)
	}
}

// What hooks say goes into the history, and may be anything.
func TestTheHistoryStaysBelowTheLimit(t *testing.T) {
	s := sample(1, 8192)
	for range state.MaxRuns + 1 {
		s.AddRun(state.Run{Outcome: strings.Repeat("\x1b\xff", 4096)})
	}
	b, err := s.Encode()
	if err != nil || len(b) > state.Max {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if _, err := state.Decode(b); err != nil {
		t.Error(err)
	}
}
