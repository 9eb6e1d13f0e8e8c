package pairs

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"tidemark/block"
	"tidemark/format/state"
	"tidemark/linux/mounts/mountstest"
	"tidemark/transfer/origin"
	"tidemark/transfer/target"
)

const judged = 8 << 20 // size of the source, bytes

// openImage returns an image file of size bytes as a source.
func openImage(t *testing.T, size int64) *block.Device {
	t.Helper()
	src, err := origin.Open(mountstest.Image(t, size))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

// Every case is judged with and without Overwrite.
func TestATargetIsJudgedByWhatIsKnownOfIt(t *testing.T) {
	src := openImage(t, judged)
	origin, other := origin.OfDevice(src), state.Source{Path: "/another"}
	complete := func(size int64, of state.Source) state.State {
		return state.State{Size: size, Complete: true, Source: of}
	}
	begun := func(size, copied int64, of state.Source) state.State {
		return state.State{Size: size, Copied: copied, Source: of}
	}
	missing := func(t *goal) { t.stateErr = target.ErrNoMirror }
	path := mountstest.Image(t, judged) // what it holds decides nothing here
	for name, c := range map[string]struct {
		size    int64 // of the target, bytes
		prepare func(*goal)
		state   state.State
		is      disposition // with Overwrite
		refused error       // without
	}{
		"nothing":                         {prepare: missing, is: fresh},
		"an image of the same size":       {size: judged, prepare: missing, is: foreign, refused: target.ErrHoldsOther},
		"a hole of the same size":         {size: judged, prepare: func(t *goal) { t.stateErr, t.blank = target.ErrNoMirror, true }, is: fresh},
		"an image of another size":        {size: judged + 512, prepare: missing, is: foreign, refused: target.ErrHoldsOther},
		"a damaged state":                 {size: judged, prepare: func(t *goal) { t.stateErr = state.ErrDamaged }, is: unusable, refused: state.ErrDamaged},
		"our mirror":                      {size: judged, state: complete(judged, origin), is: ours},
		"our mirror of a smaller source":  {size: judged / 2, state: complete(judged/2, origin), is: ours},
		"our mirror of a larger source":   {size: 2 * judged, state: complete(2*judged, origin), is: ours, refused: target.ErrHoldsOther},
		"our mirror without its image":    {state: complete(judged, origin), is: gone},
		"the mirror of another source":    {size: judged, state: complete(judged, other), is: otherOrigin, refused: target.ErrHoldsOther},
		"another mirror without an image": {state: complete(judged, other), is: gone, refused: target.ErrHoldsOther},
		"a first copy":                    {size: judged, state: begun(judged, 4096, origin), is: unfinished},
		"a first copy without its image":  {state: begun(judged, 4096, origin), is: gone},
		"a first copy that had not begun": {state: begun(judged, 0, origin), is: unfinished},
		"a first copy of another size":    {size: judged, state: begun(judged/2, 4096, origin), is: restarts},
		"a first copy of another source":  {size: judged, state: begun(judged, 4096, other), is: restarts, refused: target.ErrHoldsOther},
	} {
		t.Run(name, func(t *testing.T) {
			for _, overwrite := range []bool{false, true} {
				goal := &goal{Target: &target.Target{Path: path, Folder: path + target.FolderEnd, Exists: c.size > 0, Size: c.size}, state: c.state}
				if c.prepare != nil {
					c.prepare(goal)
				}
				err := goal.decide(src, Options{Overwrite: overwrite})
				if c.refused != nil && !overwrite {
					if !errors.Is(err, c.refused) {
						t.Errorf("%v, want %v", err, c.refused)
					}
					continue
				}
				if err != nil || goal.is != c.is {
					t.Errorf("overwrite %v: it is %d, %v; want %d", overwrite, goal.is, err, c.is)
				}
			}
		})
	}
	device := &goal{Target: &target.Target{Path: "/target", Exists: true, Device: true, Size: judged - 512}, stateErr: target.ErrNoMirror}
	if err := device.decide(src, Options{Overwrite: true}); !errors.Is(err, target.ErrTooSmall) {
		t.Errorf("a device that is too small: %v", err)
	}
}

// Between the look at a target and its lock another run makes it a mirror: what it holds
// by then is not taken for nothing.
func TestATargetIsJudgedAgainOnceItIsLocked(t *testing.T) {
	src := openImage(t, judged)
	if err := os.WriteFile(src.Path(), bytes.Repeat([]byte{7}, judged), 0o600); err != nil {
		t.Fatal(err)
	}
	path := mountstest.Image(t, 0)
	pair := []Pair{{Source: src.Path(), Target: path}}
	late := newSession(Options{StateDir: t.TempDir()}, false)
	defer late.close()
	if _, err := late.look(t.Context(), pair); err != nil {
		t.Fatal(err)
	}
	if is := late.ends[0].to.(*goal).is; is != fresh {
		t.Fatalf("it is %d", is)
	}
	if _, err := Mirror(t.Context(), pair, late.o); err != nil {
		t.Fatal(err)
	}
	ready, err := late.open(t.Context(), late.ends[0])
	if err != nil {
		t.Fatal(err)
	}
	if have := ready.Sink.Have(); !have.Complete || late.ends[0].to.(*goal).is != ours {
		t.Errorf("it is %d, with %+v", late.ends[0].to.(*goal).is, have)
	}
}

// A copy that is complete stays so when closing something afterwards fails.
func TestAnErrorOfClosingIsNoFailureOfTheRun(t *testing.T) {
	closed := errors.New("cannot be closed")
	s := &session{}
	var told string
	s.o = Options{Progress: nil}.withDefaults()
	s.later(func() error { return closed })
	if err := s.end(nil, func(text string) { told = text }); err != nil || told == "" {
		t.Errorf("%v, told %q", err, told)
	}
	s.later(func() error { return closed })
	if err := s.end(block.ErrNoCounters, func(string) { t.Error("told") }); !errors.Is(err, block.ErrNoCounters) || !errors.Is(err, closed) {
		t.Errorf("%v", err)
	}
}
