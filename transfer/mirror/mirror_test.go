package mirror_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"tidemark/extent"
	"tidemark/format/redo"
	"tidemark/format/state"
	"tidemark/internal/faultdisk"
	"tidemark/transfer"
	"tidemark/transfer/mirror"
	"tidemark/transfer/transaction"
)

const (
	blockSize = 4096
	blocks    = 6
	size      = blocks * blockSize
)

// open opens a mirror of six blocks, which is complete after a first copy of 'a'.
func open(t *testing.T, w *faultdisk.World) *mirror.Store {
	t.Helper()
	s, err := mirror.Open(w.Target(), w.Folder())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if s.Exists() {
		return s
	}
	if err := s.Init(size, blockSize, state.Source{Path: "source"}, false); err != nil {
		t.Fatal(err)
	}
	if err := commit(fill(s, 'a', blocks)); err != nil {
		t.Fatal(err)
	}
	return s
}

// fill begins an update that brings blocks of one byte to the mirror.
func fill(s *mirror.Store, with byte, blocks int) (transfer.Txn, error) {
	sink := mirror.Sink{Store: s, Name: "mirror"}
	u, _, err := sink.Begin(context.Background(), size, func(transfer.Event) {})
	if err != nil {
		return nil, err
	}
	u.NextPass()
	for i := range int64(blocks) {
		e := extent.Extent{Off: i * blockSize, Len: blockSize}
		if _, err = u.Put([]transfer.Chunk{{Extent: e, Data: bytes.Repeat([]byte{with}, blockSize)}}); err != nil {
			return u, err
		}
	}
	return u, nil
}

func commit(u transfer.Txn, err error) error {
	if u == nil || err != nil {
		return err
	}
	if err := u.Seal(transfer.Commit{}); err != nil {
		return err
	}
	if err := u.Publish(); err != nil {
		return err
	}
	return u.Finish()
}

func TestWhateverCrashesTheMirrorIsOldOrNew(t *testing.T) {
	for seed := range uint64(3) {
		faultdisk.Change{
			World: func(rng *rand.Rand) *faultdisk.World {
				w := faultdisk.New(rng)
				open(t, w)
				return w
			},
			Run: func(w *faultdisk.World) error {
				s, err := mirror.Open(w.Target(), w.Folder())
				if err != nil {
					return err
				}
				return commit(fill(s, 'b', blocks))
			},
			Recover: func(w *faultdisk.World) error {
				s, err := mirror.Open(w.Target(), w.Folder())
				if err != nil {
					return err
				}
				if bad, err := s.Check(context.Background(), nil); err != nil || !bad.Empty() {
					return errors.Join(err, errors.New("the checksums are of other blocks"))
				}
				return nil
			},
			Old: bytes.Repeat([]byte{'a'}, size), New: bytes.Repeat([]byte{'b'}, size),
		}.Crash(t, seed)
	}
}

// seal begins an update of the first block and publishes it.
func published(t *testing.T, w *faultdisk.World, with byte) transfer.Txn {
	t.Helper()
	u, err := fill(open(t, w), with, 1)
	if err == nil {
		err = u.Seal(transfer.Commit{})
	}
	if err == nil {
		err = u.Publish()
	}
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestATargetWrittenToBeforeItIsFinishedIsNotTrusted(t *testing.T) {
	w := faultdisk.New(rand.New(rand.NewPCG(1, 1)))
	if err := published(t, w, 'b').Finish(); err != nil {
		t.Fatal(err)
	}
	if why := open(t, w).Suspect(); why != "" {
		t.Fatalf("our own writes look like those of someone else: %s", why)
	}
	u := published(t, w, 'c')
	w.Scribble(blockSize+7, []byte("graffiti"))
	if err := u.Finish(); err != nil {
		t.Fatal(err)
	}
	again := open(t, w)
	if again.Suspect() == "" {
		t.Error("what someone else wrote before the update was applied is taken for ours")
	}
	bad, err := again.Check(context.Background(), nil)
	if want := (extent.Extent{Off: blockSize, Len: blockSize}); err != nil || bad.Bytes() != want.Len || !bad.Covers(want) {
		t.Errorf("bad %v, %v", bad.Extents(), err)
	}
}

// A filesystem's clock has steps. A write by somebody else within the step in which a run
// ended leaves the same times.
func TestAForeignWriteInTheSameTickIsNoticed(t *testing.T) {
	for _, tick := range []int64{1, 4, 9} {
		w := faultdisk.New(rand.New(rand.NewPCG(1, 1)))
		w.Coarse(tick)
		for _, with := range []byte{'a', 'b', 'b'} { // a first copy, an update, and one of nothing
			if err := commit(fill(open(t, w), with, blocks)); err != nil {
				t.Fatal(err)
			}
			if why := open(t, w).Suspect(); why != "" {
				t.Errorf("tick %d: our own writes look like those of someone else: %s", tick, why)
			}
		}
		w.Scribble(7, []byte("graffiti"))
		if open(t, w).Suspect() == "" {
			t.Errorf("tick %d: a foreign write is not noticed", tick)
		}
	}
}

// Where the clock stands still there is no stamp that a write would change.
func TestAClockThatStandsStillMakesEachRunCheck(t *testing.T) {
	w := faultdisk.New(rand.New(rand.NewPCG(1, 1)))
	w.Coarse(1 << 40)
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // or it would wait for the clock
	s, err := mirror.Open(w.Target(), w.Folder())
	if err == nil {
		err = s.Init(size, blockSize, state.Source{}, false)
	}
	if err != nil {
		t.Fatal(err)
	}
	u, _, err := (&mirror.Sink{Store: s}).Begin(ctx, size, func(transfer.Event) {})
	if err := commit(u, err); err != nil {
		t.Fatal(err)
	}
	if open(t, w).Suspect() == "" {
		t.Error("a stamp was trusted that no write would change")
	}
}

func TestAnUpdateIsForItsImageAlone(t *testing.T) {
	w := faultdisk.New(rand.New(rand.NewPCG(1, 1)))
	published(t, w, 'b')
	w.Replace()
	if _, err := mirror.Open(w.Target(), w.Folder()); !errors.Is(err, transaction.ErrOther) {
		t.Errorf("%v, want ErrOther", err)
	}
	if want := bytes.Repeat([]byte{'a'}, size); !bytes.Equal(w.Content(), want) {
		t.Error("the file in the place of the target was written to")
	}
}

// What is pending for a mirror is finished also when somebody has written to it, and what
// they wrote is found.
func TestAPendingUpdateIsFinishedOverForeignWrites(t *testing.T) {
	w := faultdisk.New(rand.New(rand.NewPCG(1, 1)))
	published(t, w, 'b')
	w.Scribble(2*blockSize, []byte("graffiti"))
	s := open(t, w)
	if s.Recovered() == "" || s.Suspect() == "" {
		t.Errorf("recovered %q, suspect %q", s.Recovered(), s.Suspect())
	}
	bad, err := s.Check(context.Background(), nil)
	if want := extent.NewSet(extent.Extent{Off: 2 * blockSize, Len: blockSize}); err != nil || !bad.Equal(want) {
		t.Errorf("bad %v, %v", bad.Extents(), err)
	}
}

// A journal in the format of earlier mirrors is refused, and stays.
func TestAnOldJournalIsRefusedAndKept(t *testing.T) {
	w := faultdisk.New(rand.New(rand.NewPCG(1, 1)))
	open(t, w)
	f, err := w.Folder().Open(transaction.ReadyFile, true)
	if err == nil {
		_, err = f.WriteAt(append([]byte("TMJRNL\r\n"), make([]byte, 100)...), 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := mirror.Open(w.Target(), w.Folder()); !errors.Is(err, redo.ErrOldMirror) {
			t.Errorf("%v, want ErrOldMirror", err)
		}
	}
}

// What a check found is remembered until an update has repaired it, and no longer.
func TestDamageIsRememberedUntilItIsRepaired(t *testing.T) {
	s := open(t, faultdisk.New(rand.New(rand.NewPCG(1, 1))))
	at := time.Unix(1e9, 0)
	if err := s.Checked(at, extent.Set{}); err != nil || !s.State().Verified.Equal(at) || s.State().Damage != nil {
		t.Fatalf("%+v, %v", s.State(), err)
	}
	if err := s.Checked(at, extent.NewSet(extent.Extent{Len: blockSize})); err != nil || s.Suspect() == "" {
		t.Fatalf("%+v, %v", s.State(), err)
	}
	u, err := fill(s, 'b', 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Abort(transfer.RunRecord{}); err != nil || s.State().Damage == nil || s.State().Damage.Bytes != blockSize || s.Suspect() == "" {
		t.Fatalf("after a run that failed: %+v, %v", s.State(), err)
	}
	if err := commit(fill(s, 'c', blocks)); err != nil || s.State().Damage != nil || !s.State().Verified.Equal(at) {
		t.Errorf("after a run: %+v, %v", s.State(), err)
	}
}
