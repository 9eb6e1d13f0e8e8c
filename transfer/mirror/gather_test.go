package mirror_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"tidemark/format/state"
	"tidemark/internal/faultdisk"
	"tidemark/transfer/mirror"
)

// fillAndBecome writes all but the last block, which is zeros, and makes a mirror of that.
func fillAndBecome(t *testing.T, w *faultdisk.World) error {
	s, to := mirror.New(w.Target(), w.Folder()), w.Target()
	defer s.Close()
	err := errors.Join(s.Gather(size, blockSize, state.Source{Path: "source"}), to.Resize(size))
	for off := int64(0); off < size-blockSize && err == nil; off += blockSize {
		data := bytes.Repeat([]byte{'a' + byte(off/blockSize)}, blockSize)
		if _, err = to.WriteAt(data, off); err == nil {
			err = s.Holds(off, data)
		}
	}
	if err == nil {
		err = to.Sync()
	}
	if err == nil {
		err = s.Become(t.Context(), "bpf:mark", time.Now())
	}
	return err
}

// Whatever crashes while a target that something else has filled becomes a mirror: it is one of what
// it holds, or none.
func TestWhatWasFilledBecomesAMirrorOrNone(t *testing.T) {
	for _, plan := range []func(*faultdisk.World, int){(*faultdisk.World).CutAfter, (*faultdisk.World).FailAfter} {
		for n, ended := 0, false; !ended; n++ {
			w := faultdisk.New(rand.New(rand.NewPCG(1, uint64(n))))
			plan(w, n)
			err := fillAndBecome(t, w)
			if ended = err == nil; w.IsOff() {
				w.Restart()
			}
			w.Calm()
			s, openErr := mirror.Open(w.Target(), w.Folder())
			if openErr != nil {
				t.Fatalf("operation %d: %v", n, openErr)
			}
			if !s.Exists() {
				if ended {
					t.Fatal("it is no mirror")
				}
				continue
			}
			st := s.State()
			bad, checkErr := s.Check(t.Context(), nil)
			if !st.Complete || st.Mark != "bpf:mark" || checkErr != nil || !bad.Empty() || ended && s.Suspect() != "" {
				t.Fatalf("operation %d (%v): %+v, %v differ, %v, %q", n, err, st, bad.Extents(), checkErr, s.Suspect())
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}
