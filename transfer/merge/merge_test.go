package merge_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"tidemark/extent"
	"tidemark/internal/faultdisk"
	"tidemark/transfer/merge"
	"tidemark/transfer/transaction"
)

// pieces yields a list, as a format's reader does.
func pieces(list []merge.Piece) iter.Seq2[merge.Piece, error] {
	return func(yield func(merge.Piece, error) bool) {
		for _, p := range list {
			if !yield(p, nil) {
				return
			}
		}
	}
}

// sample is a source, a target, pieces that do not overlap in it, and what it is to be.
type sample struct {
	from, target, want []byte
	list               []merge.Piece
	bytes              int64
}

func random(rng *rand.Rand, unit, places int) sample {
	s := sample{from: make([]byte, places*unit), target: make([]byte, places*unit+unit/2)}
	for i := range s.from {
		s.from[i] = byte(rng.Uint32())
	}
	for i := range s.target {
		s.target[i] = byte(rng.Uint32()) & 1
	}
	s.want = bytes.Clone(s.target)
	for _, to := range rng.Perm(places + 1)[:rng.IntN(places)] {
		from, at, n := rng.IntN(places)*unit, to*unit, unit
		if to > 0 && rng.IntN(2) == 0 && len(s.list) > 0 { // consecutive, now and then
			last := s.list[len(s.list)-1]
			if f := int(last.From) + unit; f < len(s.from) {
				from = f
			}
		}
		n = min(n, len(s.target)-at)
		s.list = append(s.list, merge.Piece{From: int64(from), To: int64(at), Len: int64(n)})
		copy(s.want[at:at+n], s.from[from:])
		s.bytes += int64(n)
	}
	return s
}

func (s sample) job() merge.Job {
	return merge.Job{From: bytes.NewReader(s.from), Pieces: pieces(s.list)}
}

// world has the target on a disk that forgets what was not synced.
func (s sample) world(rng *rand.Rand) *faultdisk.World {
	w := faultdisk.New(rng)
	target := w.Target()
	if err := errors.Join(target.Resize(int64(len(s.target))), writeAll(target, s.target), target.Sync()); err != nil {
		panic(err)
	}
	return w
}

func writeAll(t transaction.Target, b []byte) error {
	_, err := t.WriteAt(b, 0)
	return err
}

func TestPiecesComeWhereTheyBelong(t *testing.T) {
	ctx := context.Background()
	seeds := uint64(12)
	if testing.Short() {
		seeds = 3
	}
	for seed := range seeds {
		rng := rand.New(rand.NewPCG(seed, 1))
		s := random(rng, []int{512, 4096, 64 << 10}[seed%3], 200)
		same := func(what string, got []byte, rep merge.Report, err error) {
			t.Helper()
			if err != nil || !bytes.Equal(got, s.want) || rep.Bytes != s.bytes {
				t.Fatalf("seed %d: %s: %+v, %v", seed, what, rep, err)
			}
		}
		w := s.world(rng)
		rep, err := s.job().Write(ctx, w.Target(), false)
		same("write", w.Content(), rep, err)
		if rep, err := s.job().Compare(ctx, w.Target()); err != nil || rep.Equal != s.bytes {
			t.Fatalf("seed %d: %+v, %v: want all equal", seed, rep, err)
		}
		w = s.world(rng)
		rep, err = s.job().Commit(ctx, w.Target(), w.Folder())
		same("commit", w.Content(), rep, err)

		path := filepath.Join(t.TempDir(), "image")
		rep, err = s.job().Extract(ctx, origin{bytes.NewReader(s.target)}, path)
		got, rerr := os.ReadFile(path)
		same("extract", got, rep, errors.Join(err, rerr))
		if _, err := s.job().Extract(ctx, origin{bytes.NewReader(s.target)}, path); !errors.Is(err, fs.ErrExist) {
			t.Errorf("over an image that exists: %v", err)
		}
		other := path + "2" + transaction.NewEnd
		if err := os.WriteFile(other, []byte("theirs"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.job().Extract(ctx, origin{bytes.NewReader(s.target)}, path+"2"); !errors.Is(err, fs.ErrExist) {
			t.Errorf("over what may be another's: %v", err)
		}
		if b, err := os.ReadFile(other); err != nil || string(b) != "theirs" {
			t.Errorf("%q, %v: it was another's", b, err)
		}
		if left, err := filepath.Glob(path + ".*"); err != nil || len(left) > 0 {
			t.Errorf("%v, %v is left", left, err)
		}
	}
}

// origin is an image without holes.
type origin struct{ *bytes.Reader }

func (o origin) Data(e extent.Extent) (extent.Set, error) { return extent.NewSet(e), nil }

// A write in place that was cut off at any operation is finished by the same write again.
func TestACutWriteIsFinishedByAnother(t *testing.T) {
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(7, 7))
	s := random(rng, 512, 60)
	w := s.world(rng)
	if _, err := s.job().Write(ctx, w.Target(), false); err != nil {
		t.Fatal(err)
	}
	all := w.Ops()
	for n := range all {
		w := s.world(rng)
		w.CutAfter(n)
		if _, err := s.job().Write(ctx, w.Target(), false); err == nil && !w.IsOff() {
			continue // fewer operations this time
		} else if err == nil {
			t.Fatalf("cut in operation %d, and all is said to be well", n)
		}
		w.Restart()
		if _, err := s.job().Write(ctx, w.Target(), false); err != nil || !bytes.Equal(w.Content(), s.want) {
			t.Fatalf("cut in operation %d, and then: %v", n, err)
		}
	}
}

func TestACommitIsOldOrNew(t *testing.T) {
	ctx := context.Background()
	s := random(rand.New(rand.NewPCG(3, 3)), 512, 10)
	faultdisk.Change{
		World: s.world,
		Run: func(w *faultdisk.World) error {
			_, err := s.job().Commit(ctx, w.Target(), w.Folder())
			return err
		},
		Recover: func(w *faultdisk.World) error {
			_, err := transaction.Recover(w.Target(), w.Folder(), transaction.FinishSame, transaction.Steps{})
			return err
		},
		Committed: func(err error) bool { return errors.Is(err, merge.ErrPending) },
		Old:       s.target, New: s.want,
	}.Crash(t, 1)
}

// An error of the reader, or of the list, names the byte, and nothing is committed.
func TestWhatCannotBeReadIsNamed(t *testing.T) {
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(5, 5))
	s := random(rng, 512, 200)
	s.list = append(s.list, merge.Piece{From: int64(len(s.from)) - 100, To: int64(len(s.target)), Len: 512})
	w := s.world(rng)
	_, err := s.job().Commit(ctx, w.Target(), w.Folder())
	if err == nil || !bytes.Contains([]byte(err.Error()), []byte("at byte 102300: unexpected EOF")) || !bytes.Equal(w.Content(), s.target) {
		t.Error(err)
	}
	bad := errors.New("a list that ends early")
	j := s.job()
	j.Pieces = func(yield func(merge.Piece, error) bool) { yield(merge.Piece{}, bad) }
	if _, err := j.Commit(ctx, w.Target(), w.Folder()); !errors.Is(err, bad) || !bytes.Equal(w.Content(), s.target) {
		t.Error(err)
	}
	stopped, stop := context.WithCancel(ctx)
	stop()
	if _, err := s.job().Write(stopped, w.Target(), false); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
