package restore

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"tidemark/extent"
	"tidemark/format/state"
	"tidemark/format/sums"
	"tidemark/internal/faultdisk"
	"tidemark/transfer/transaction"
)

const (
	blockSize = 4096
	blocks    = 24
)

// image is the content of a copy in memory.
type image []byte

func (i image) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(i).ReadAt(p, off) }

func (i image) Size() int64 { return int64(len(i)) }

func (i image) CurrentSize() (int64, error) { return i.Size(), nil }

func (i image) Data(e extent.Extent) (extent.Set, error) {
	return extent.NewSet(e.Intersect(extent.Extent{Len: i.Size()})), nil
}

// sumsFile is a file of checksums in memory.
type sumsFile struct{ bytes.Buffer }

func (f *sumsFile) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(f.Bytes()).ReadAt(p, off)
}

func (f *sumsFile) WriteAt(p []byte, off int64) (int, error) {
	if grow := int(off) + len(p) - f.Len(); grow > 0 {
		f.Write(make([]byte, grow))
	}
	return copy(f.Bytes()[off:], p), nil
}

// content is blocks of noise and of zeros, the last one short.
func content(rng *rand.Rand) []byte {
	b := make([]byte, blocks*blockSize-512)
	for i := range b {
		if n := i / blockSize; n%5 != 0 {
			b[i] = byte(rng.Uint32())
		}
	}
	return b
}

// copyOf is the copy of content with its checksums.
func copyOf(t testing.TB, b []byte) kept {
	t.Helper()
	c := kept{Image: image(bytes.Clone(b)), State: state.State{ID: state.ID{7}, Update: 3, Size: int64(len(b)), BlockSize: blockSize, Complete: true}}
	all, err := sums.Create(&sumsFile{}, c.State.ID, blockSize)
	if err != nil {
		t.Fatal(err)
	}
	c.Sums = all
	for off := 0; off < len(b); off += blockSize {
		if err := all.Write([]sums.Sum{sums.Of(b[off:min(off+blockSize, len(b))])}, int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// world is a target that holds old.
func world(t testing.TB, rng *rand.Rand, old []byte) *faultdisk.World {
	t.Helper()
	w := faultdisk.New(rng)
	_, err := w.Target().WriteAt(old, 0)
	if err = errors.Join(err, w.Target().Sync()); err != nil {
		t.Fatal(err)
	}
	return w
}

// older is b with some blocks changed.
func older(rng *rand.Rand, b []byte) []byte {
	b = bytes.Clone(b)
	for range 6 {
		off := rng.IntN(blocks) * blockSize
		clear(b[off:min(off+blockSize, len(b))])
		b[off+rng.IntN(512)] ^= 1
	}
	return b
}

func seeded(t testing.TB) (*rand.Rand, uint64) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0)), seed
}

func TestTheDiskThatTheCopyIsOfIsOldOrNewWhateverCrashes(t *testing.T) {
	rng, seed := seeded(t)
	b := content(rng)
	c, old := copyOf(t, b), older(rng, b)
	faultdisk.Change{
		World: func(rng *rand.Rand) *faultdisk.World { return world(t, rng, old) },
		Run: func(w *faultdisk.World) error {
			s, err := openStore(w.Target(), w.Folder(), c, false)
			if err != nil {
				return err
			}
			differs, err := s.Compare(context.Background(), c.whole())
			if err != nil {
				return err
			}
			if err := s.Commit(context.Background(), differs); err != nil {
				return err
			}
			return s.End()
		},
		Recover: func(w *faultdisk.World) error {
			_, err := openStore(w.Target(), w.Folder(), c, false)
			return err
		},
		Old: old, New: b,
	}.Crash(t, seed)
}

// goOn is one run of a restore in place, as package pairs does it.
func goOn(w *faultdisk.World, c kept, ctx context.Context) error {
	s, err := openStore(w.Target(), w.Folder(), c, false)
	if err != nil {
		return err
	}
	s.stretch = 5 * blockSize
	copied, why, ok := s.Resumes()
	done := extent.NewSet(extent.Extent{Len: copied})
	left := c.whole().Subtract(done)
	if ok && why != "" {
		bad, err := s.Compare(ctx, done)
		if err != nil {
			return err
		}
		left = left.Union(bad)
	}
	if err := s.Write(ctx, left, copied); err != nil {
		return err
	}
	return s.End()
}

// A target that is between says so; what counts as restored is; and some run is the last.
func TestARestoreThatWasCutOffGoesOnWhateverCrashes(t *testing.T) {
	rng, _ := seeded(t)
	b := content(rng)
	c, old := copyOf(t, b), content(rng)
	resumed := false
	for n, ended := 0, false; !ended; n++ {
		for _, plan := range []func(*faultdisk.World, int){(*faultdisk.World).CutAfter, (*faultdisk.World).FailAfter} {
			w := world(t, rng, old)
			for i, at := range []int{n, rng.IntN(30), rng.IntN(30)} {
				plan(w, at)
				err := goOn(w, c, context.Background())
				ended = ended || i == 0 && err == nil
				if w.IsOff() {
					w.Restart()
				}
				w.Calm()
				copied, isBetween := recorded(t, w)
				got := w.Content()
				if !isBetween && !bytes.Equal(got, old) && !bytes.Equal(got, b) {
					t.Fatalf("operation %d: the target is between, and does not say so (%v)", at, err)
				}
				if isBetween && !bytes.Equal(got[:min(copied, int64(len(got)))], b[:copied]) {
					t.Fatalf("operation %d: %d bytes count as restored, and are not (%v)", at, copied, err)
				}
				resumed = resumed || copied > 0
			}
			if err := goOn(w, c, context.Background()); err != nil {
				t.Fatal(err)
			}
			if _, is := recorded(t, w); is || !bytes.Equal(w.Content(), b) {
				t.Fatalf("cut off at operation %d: the last run left something else", n)
			}
		}
	}
	if !resumed {
		t.Error("no run went on")
	}
}

// recorded is what the folder tells.
func recorded(t *testing.T, w *faultdisk.World) (copied int64, is bool) {
	t.Helper()
	f, err := w.Folder().Open(RecordFile, false)
	if err != nil {
		return 0, false
	}
	st, err := state.Read(f)
	if err != nil {
		t.Fatal(err)
	}
	return st.Copied, true
}

// stopping is a copy that ends a context at a block.
type stopping struct {
	image
	at   int64
	stop context.CancelFunc
}

func (s stopping) ReadAt(p []byte, off int64) (int, error) {
	if off <= s.at && s.at < off+int64(len(p)) {
		s.stop()
	}
	return s.image.ReadAt(p, off)
}

func TestAStoppedRestoreGoesOnWithoutAnotherLook(t *testing.T) {
	rng, _ := seeded(t)
	b := content(rng)
	c := copyOf(t, b)
	w := world(t, rng, content(rng))
	ctx, stop := context.WithCancel(context.Background())
	first := c
	first.Image = stopping{image(b), 12 * blockSize, stop}
	if err := goOn(w, first, ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	s, err := openStore(w.Target(), w.Folder(), c, false)
	if err != nil {
		t.Fatal(err)
	}
	if copied, why, ok := s.Resumes(); !ok || why != "" || copied != 10*blockSize {
		t.Errorf("goes on after %d: %q, %v", copied, why, ok)
	}
	w.Scribble(blockSize, []byte("somebody else"))
	if _, why, _ := s.Resumes(); why == "" {
		t.Error("a write by somebody else is not noticed")
	}
	if err := goOn(w, c, context.Background()); err != nil || !bytes.Equal(w.Content(), b) {
		t.Errorf("it is not the copy: %v", err)
	}
	// Another copy does not go on with this one.
	if err := goOn(w, first, ctx); err == nil {
		t.Fatal("it was not stopped")
	}
	c.State.Update++
	if s, err = openStore(w.Target(), w.Folder(), c, false); err != nil {
		t.Fatal(err)
	}
	if _, _, ok := s.Resumes(); ok {
		t.Error("it goes on with another copy")
	}
}

// Of a damaged copy in place all but the damage is restored; through the journal nothing.
func TestADamagedBlockIsNotRestored(t *testing.T) {
	rng, _ := seeded(t)
	b := content(rng)
	c, old := copyOf(t, b), older(rng, b)
	bad := extent.NewSet(extent.Extent{Off: 7 * blockSize, Len: blockSize})
	c.Image.(image)[7*blockSize+100] ^= 1
	old[7*blockSize+50] ^= 1
	for _, unchecked := range []bool{false, true} {
		for _, journaled := range []bool{false, true} {
			c.Unchecked = unchecked
			w := world(t, rng, old)
			s, err := openStore(w.Target(), w.Folder(), c, false)
			if err != nil {
				t.Fatal(err)
			}
			if journaled {
				err = s.Commit(context.Background(), c.whole())
			} else {
				err = s.Write(context.Background(), c.whole(), 0)
			}
			if errors.Is(err, ErrDamaged) == unchecked || err != nil && unchecked {
				t.Errorf("unchecked %v, journaled %v: %v", unchecked, journaled, err)
			}
			want := bytes.Clone(b)
			switch {
			case unchecked:
				want = c.Image.(image)
			case journaled:
				want = old
			default:
				copy(want[7*blockSize:8*blockSize], old[7*blockSize:])
				if copied, _, ok := s.Resumes(); !ok || copied != 7*blockSize {
					t.Errorf("it would go on at %d, %v", copied, ok)
				}
			}
			if !bytes.Equal(w.Content(), want) || !s.Bad().Equal(bad) {
				t.Errorf("unchecked %v, journaled %v: another content; bad %v", unchecked, journaled, s.Bad())
			}
		}
	}
}

// broken is a copy of which a sector cannot be read.
type broken struct{ image }

var errSector = errors.New("a bad sector")

func (b broken) ReadAt(p []byte, off int64) (int, error) {
	if at := int64(2 * blockSize); off <= at && at < off+int64(len(p)) {
		return 0, errSector
	}
	return b.image.ReadAt(p, off)
}

func TestWhatCannotBeReadIsLeftOutAndBecomesZerosWhenThatIsAskedFor(t *testing.T) {
	rng, _ := seeded(t)
	b := content(rng)
	c := copyOf(t, b)
	c.Image = broken{c.Image.(image)}
	old := content(rng)
	w := world(t, rng, old)
	s, err := openStore(w.Target(), w.Folder(), c, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Write(context.Background(), c.whole(), 0); !errors.Is(err, errSector) || !errors.Is(err, ErrDamaged) {
		t.Errorf("%v", err)
	}
	rest := bytes.Clone(b)
	copy(rest[2*blockSize:3*blockSize], old[2*blockSize:])
	if copied, _, _ := s.Resumes(); !bytes.Equal(w.Content(), rest) || copied != 2*blockSize {
		t.Errorf("another content, or it would go on at %d", copied)
	}
	s.lost = mostLost // its disk is gone
	if err := s.Write(context.Background(), c.whole(), 0); !errors.Is(err, errSector) || errors.Is(err, ErrDamaged) {
		t.Errorf("%v", err)
	}
	c.Unchecked = true
	if s, err = openStore(w.Target(), w.Folder(), c, false); err != nil {
		t.Fatal(err)
	}
	if err := s.Write(context.Background(), c.whole(), 0); err != nil {
		t.Fatal(err)
	}
	clear(b[2*blockSize : 3*blockSize])
	if want := extent.NewSet(extent.Extent{Off: 2 * blockSize, Len: blockSize}); !bytes.Equal(w.Content(), b) || !s.Bad().Equal(want) {
		t.Errorf("another content; bad %v", s.Bad())
	}
}

func TestWhatWaitsOfAnotherOwnerIsKept(t *testing.T) {
	rng, _ := seeded(t)
	b := content(rng)
	c := copyOf(t, b)
	w := world(t, rng, content(rng))
	txn, err := transaction.Begin(context.Background(), w.Target(), w.Folder())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(txn.Data(0, b[:blockSize]), txn.Seal(context.Background(), int64(len(b)), nil), txn.Publish()); err != nil {
		t.Fatal(err)
	}
	if _, err := openStore(w.Target(), w.Folder(), c, false); !errors.Is(err, transaction.ErrOtherOwner) {
		t.Errorf("%v", err)
	}
	s, err := openStore(w.Target(), w.Folder(), c, true)
	if err != nil || s.Recovered() == "" {
		t.Errorf("%v", err)
	}
}
