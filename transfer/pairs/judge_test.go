package pairs

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/format/state"
	"tidemark/linux/mounts/mountstest"
)

const judged = 8 << 20 // size of the source, bytes

// openImage returns an image file of size bytes as a source.
func openImage(t *testing.T, size int64) *source {
	t.Helper()
	src, err := openSource(mountstest.Image(t, size))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

// Every case is judged with and without Overwrite.
func TestATargetIsJudgedByWhatIsKnownOfIt(t *testing.T) {
	src := openImage(t, judged)
	origin, other := src.origin(), state.Source{Path: "/another"}
	complete := func(size int64, of state.Source) state.State {
		return state.State{Size: size, Complete: true, Source: of}
	}
	begun := func(size, copied int64, of state.Source) state.State {
		return state.State{Size: size, Copied: copied, Source: of}
	}
	missing := func(t *target) { t.stateErr = ErrNoMirror }
	path := mountstest.Image(t, judged) // what it holds decides nothing here
	for name, c := range map[string]struct {
		size    int64 // of the target, bytes
		prepare func(*target)
		state   state.State
		is      disposition // with Overwrite
		refused error       // without
	}{
		"nothing":                         {prepare: missing, is: fresh},
		"an image of the same size":       {size: judged, prepare: missing, is: foreign, refused: ErrHoldsOther},
		"a hole of the same size":         {size: judged, prepare: func(t *target) { t.stateErr, t.blank = ErrNoMirror, true }, is: fresh},
		"an image of another size":        {size: judged + 512, prepare: missing, is: foreign, refused: ErrHoldsOther},
		"a damaged state":                 {size: judged, prepare: func(t *target) { t.stateErr = state.ErrDamaged }, is: unusable, refused: state.ErrDamaged},
		"our mirror":                      {size: judged, state: complete(judged, origin), is: ours},
		"our mirror of a smaller source":  {size: judged / 2, state: complete(judged/2, origin), is: ours},
		"our mirror of a larger source":   {size: 2 * judged, state: complete(2*judged, origin), is: ours, refused: ErrHoldsOther},
		"our mirror without its image":    {state: complete(judged, origin), is: gone},
		"the mirror of another source":    {size: judged, state: complete(judged, other), is: otherOrigin, refused: ErrHoldsOther},
		"another mirror without an image": {state: complete(judged, other), is: gone, refused: ErrHoldsOther},
		"a first copy":                    {size: judged, state: begun(judged, 4096, origin), is: unfinished},
		"a first copy without its image":  {state: begun(judged, 4096, origin), is: gone},
		"a first copy that had not begun": {state: begun(judged, 0, origin), is: unfinished},
		"a first copy of another size":    {size: judged, state: begun(judged/2, 4096, origin), is: restarts},
		"a first copy of another source":  {size: judged, state: begun(judged, 4096, other), is: restarts, refused: ErrHoldsOther},
	} {
		t.Run(name, func(t *testing.T) {
			for _, overwrite := range []bool{false, true} {
				target := &target{path: path, folder: path + folderEnd, exists: c.size > 0, size: c.size, state: c.state}
				if c.prepare != nil {
					c.prepare(target)
				}
				err := target.judge(src, Options{Overwrite: overwrite})
				if c.refused != nil && !overwrite {
					if !errors.Is(err, c.refused) {
						t.Errorf("%v, want %v", err, c.refused)
					}
					continue
				}
				if err != nil || target.is != c.is {
					t.Errorf("overwrite %v: it is %d, %v; want %d", overwrite, target.is, err, c.is)
				}
			}
		})
	}
	device := &target{path: "/target", exists: true, device: true, size: judged - 512, stateErr: ErrNoMirror}
	if err := device.judge(src, Options{Overwrite: true}); !errors.Is(err, ErrTooSmall) {
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
	late := &session{o: Options{StateDir: t.TempDir()}.withDefaults()}
	defer late.close()
	if _, err := late.look(t.Context(), pair); err != nil {
		t.Fatal(err)
	}
	if is := late.ends[0].target.is; is != fresh {
		t.Fatalf("it is %d", is)
	}
	if _, err := Mirror(t.Context(), pair, late.o); err != nil {
		t.Fatal(err)
	}
	ready, err := late.open(t.Context(), late.ends[0])
	if err != nil {
		t.Fatal(err)
	}
	if have := ready.Sink.Have(); !have.Complete || late.ends[0].target.is != ours {
		t.Errorf("it is %d, with %+v", late.ends[0].target.is, have)
	}
}

// Between the judgement of a target and its opening somebody puts another in its place.
func TestATargetThatWasReplacedIsRefused(t *testing.T) {
	for name, pair := range map[string][2]string{
		"image":  {mountstest.Image(t, judged), mountstest.Image(t, judged)},
		"device": {mountstest.Disk(t, judged), mountstest.Disk(t, judged)},
	} {
		link := filepath.Join(t.TempDir(), "target")
		if err := os.Symlink(pair[0], link); err != nil {
			t.Fatal(err)
		}
		found, err := findTarget(link, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		found.path = link // as a path without links is replaced
		if err := errors.Join(os.Remove(link), os.Symlink(pair[1], link)); err != nil {
			t.Fatal(err)
		}
		if found.device {
			found.id.Path = link
		}
		if err := found.openDisk(judged); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
		if err := found.close(); err != nil {
			t.Error(err)
		}
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

// A loop device that is detached, or a drive without medium, has not shrunk to nothing.
func TestADeviceWithoutSizeIsNoShrunkenOne(t *testing.T) {
	path := detached(t)
	if _, err := openSource(path); !errors.Is(err, ErrNoSize) || !errors.Is(err, ErrSource) || errors.Is(err, ErrRefused) {
		t.Errorf("as a source: %v", err)
	}
	if _, err := findTarget(path, t.TempDir()); !errors.Is(err, ErrNoSize) || errors.Is(err, ErrRefused) {
		t.Errorf("as a target: %v", err)
	}
}

// detached makes a loop device that nobody else will attach anything to meanwhile.
func detached(t *testing.T) string {
	t.Helper()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	number := 1000 + os.Getpid()%1000
	for unix.IoctlSetInt(int(control.Fd()), unix.LOOP_CTL_ADD, number) == unix.EEXIST {
		number++
	}
	t.Cleanup(func() {
		control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
		if err == nil {
			err = errors.Join(unix.IoctlSetInt(int(control.Fd()), unix.LOOP_CTL_REMOVE, number), control.Close())
		}
		if err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(t.TempDir(), "loop")
	if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(7, uint32(number)))); err != nil {
		t.Fatal(err)
	}
	return path
}
