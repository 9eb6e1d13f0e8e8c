package apply_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math/rand/v2"
	"testing"

	"tidemark/format/erastream"
	"tidemark/format/redo"
	"tidemark/internal/faultdisk"
	"tidemark/transfer/apply"
	"tidemark/transfer/mirror"
	"tidemark/transfer/transaction"
)

// job is a stream, and a target before and after it.
type job struct {
	old, new, stream []byte
}

// newJob makes records of all sorts: aligned or not, short and long, of zeros,
// empty, and where grow is above zero past the end.
func newJob(t testing.TB, rng *rand.Rand, size, grow int) job {
	t.Helper()
	j := job{old: noise(rng, size)}
	j.new = append(append([]byte(nil), j.old...), make([]byte, grow)...)
	var out bytes.Buffer
	w := erastream.NewWriter(&out)
	step, aligned := 1<<(9+rng.IntN(10)), rng.IntN(2) == 0
	end := 0
	for at := rng.IntN(step); at < len(j.new); at += rng.IntN(2 * step) {
		if aligned {
			at = (at + 4095) / 4096 * 4096
		}
		n := min(rng.IntN(step), max(0, len(j.new)-at))
		if aligned {
			n = n / 4096 * 4096
		}
		data := make([]byte, n)
		if rng.IntN(3) > 0 {
			data = noise(rng, n)
		}
		if err := w.Copy(erastream.Record{Off: int64(at), Len: int64(n)}, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		copy(j.new[min(at, len(j.new)):], data)
		at += n
		if n > 0 {
			end = at
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if end == 0 {
		return newJob(t, rng, size, grow)
	}
	j.new = j.new[:max(size, end)]
	j.stream = out.Bytes()
	return j
}

func noise(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// world makes a disk that holds the old content.
func (j job) world(t testing.TB, rng *rand.Rand) *faultdisk.World {
	t.Helper()
	w := faultdisk.New(rng)
	target := w.Target()
	if err := errors.Join(target.Resize(int64(len(j.old))), write(target, j.old), target.Sync()); err != nil {
		t.Fatal(err)
	}
	return w
}

func write(target transaction.Target, b []byte) error {
	_, err := target.WriteAt(b, 0)
	return err
}

func (j job) run(w *faultdisk.World) error {
	o := apply.Options{Grow: true}
	s, err := apply.Open(w.Target(), w.Folder(), o)
	if err != nil {
		return err
	}
	_, err = s.Apply(context.Background(), bytes.NewReader(j.stream), o)
	return err
}

// finish is what somebody says who knows that nobody else has written to the target.
var finish = apply.Options{Waiting: transaction.Finish}

// each calls f with n from zero on until f says that it was the last.
func each(f func(n int) bool) {
	for n := 0; !f(n); n++ {
	}
}

func TestWhateverCrashesTheTargetIsOldOrNew(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	size := 1 << 14
	if testing.Short() {
		size = 1 << 12
	}
	for round := range uint64(3) {
		j := newJob(t, rng, 1<<12+rng.IntN(2*size), rng.IntN(2)*rng.IntN(size))
		faultdisk.Change{
			World: func(rng *rand.Rand) *faultdisk.World { return j.world(t, rng) },
			Run:   j.run, Old: j.old, New: j.new,
			Recover: func(w *faultdisk.World) error {
				_, err := apply.Open(w.Target(), w.Folder(), finish)
				return err
			},
			Committed: func(err error) bool { return errors.Is(err, apply.ErrPending) },
		}.Crash(t, seed+round)
	}
}

// place is a folder of a faultdisk that can publish.
type place struct{ transaction.Folder }

const published = "the target"

func (p place) Publish(name string) error {
	if err := p.Rename(name, published); err != nil {
		return err
	}
	return p.Sync()
}

func (p place) content(t testing.TB) []byte {
	f, err := p.Open(published, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	size, err := f.Size()
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(io.NewSectionReader(f, 0, size))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestANewImageIsThereWholeOrNotAtAll(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for round := range 8 {
		j := newJob(t, rng, 0, 1<<12+rng.IntN(1<<18))
		for _, cut := range []bool{true, false} {
			each(func(n int) bool {
				w := faultdisk.New(rng)
				p := place{w.Folder()}
				w.FailAfter(n)
				if cut {
					w.CutAfter(n)
				}
				_, err := apply.Create(context.Background(), p, bytes.NewReader(j.stream), apply.Options{})
				if err == nil {
					if got := p.content(t); !bytes.Equal(got, j.new) {
						t.Fatalf("seed %d round %d: %d bytes that are not the image of %d", seed, round, len(got), len(j.new))
					}
					return true
				}
				if cut {
					w.Restart()
				}
				w.Calm()
				if got := p.content(t); got != nil && !bytes.Equal(got, j.new) {
					t.Fatalf("seed %d round %d op %d: half an image", seed, round, n)
				}
				return false
			})
		}
	}
}

// TestABadStreamTouchesNothing gives streams that are cut off, contradict
// themselves or do not fit.
func TestABadStreamTouchesNothing(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	j := newJob(t, rng, 1<<16, 0)
	past := newJob(t, rng, 1<<16, 1<<16)
	big := append(append([]byte("ERARANGE"), make([]byte, 8)...), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f)
	for name, x := range map[string]struct {
		in   []byte
		want error
	}{
		"cut off":        {j.stream[:len(j.stream)-1], erastream.ErrDamaged},
		"half a header":  {append(j.stream[:len(j.stream):len(j.stream)], "ERAR"...), erastream.ErrDamaged},
		"twice":          {append(j.stream[:len(j.stream):len(j.stream)], j.stream...), erastream.ErrDamaged},
		"something else": {[]byte("<blocks>\n</blocks>\n"), erastream.ErrNotStream},
		"past the end":   {past.stream, erastream.ErrOutOfBounds},
		"a huge length":  {big, erastream.ErrOutOfBounds},
	} {
		w := j.world(t, rng)
		s, err := apply.Open(w.Target(), w.Folder(), apply.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Apply(context.Background(), bytes.NewReader(x.in), apply.Options{}); !errors.Is(err, x.want) {
			t.Errorf("%s: %v, want %v", name, err, x.want)
		}
		if _, err := apply.Check(context.Background(), bytes.NewReader(x.in), int64(len(j.old)), apply.Options{}); !errors.Is(err, x.want) {
			t.Errorf("%s: check: %v, want %v", name, err, x.want)
		}
		if !bytes.Equal(w.Content(), j.old) {
			t.Errorf("%s: the target has changed", name)
		}
		if _, err := w.Folder().Open("journal", false); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: a journal is left: %v", name, err)
		}
	}
}

// blocked is a pipe of which the other end does nothing.
type blocked struct{ never chan struct{} }

func (b blocked) Read([]byte) (int, error) {
	<-b.never
	return 0, io.EOF
}

func TestAnEndedContextLeavesTheOldTarget(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	j := newJob(t, rng, 1<<16, 0)
	w := j.world(t, rng)
	s, err := apply.Open(w.Target(), w.Folder(), apply.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	stopped := errors.New("stopped")
	never := blocked{make(chan struct{})}
	defer close(never.never)
	cancel(stopped)
	if _, err := s.Apply(ctx, io.MultiReader(bytes.NewReader(j.stream), never), apply.Options{}); !errors.Is(err, stopped) {
		t.Errorf("%v, want %v", err, stopped)
	}
	if !bytes.Equal(w.Content(), j.old) {
		t.Error("the target has changed")
	}
}

// TestAnotherWriterIsNoticed changes the target while the stream is read.
func TestAnotherWriterIsNoticed(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	j := newJob(t, rng, 1<<16, 0)
	w := j.world(t, rng)
	s, err := apply.Open(w.Target(), w.Folder(), apply.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r := readerFunc(func(p []byte) (int, error) {
		w.Scribble(0, []byte("mine"))
		return 0, io.EOF
	})
	if _, err := s.Apply(context.Background(), io.MultiReader(bytes.NewReader(j.stream), r), apply.Options{}); !errors.Is(err, transaction.ErrChanged) {
		t.Errorf("%v, want ErrChanged", err)
	}
	if want := append([]byte("mine"), j.old[4:]...); !bytes.Equal(w.Content(), want) {
		t.Error("the target was written to")
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// pending makes a disk with a committed change that has not reached the target.
func pending(t *testing.T, j job, rng *rand.Rand) *faultdisk.World {
	for n := 0; ; n++ {
		w := j.world(t, rng)
		w.FailAfter(n)
		if err := j.run(w); errors.Is(err, apply.ErrPending) {
			w.Calm()
			return w
		} else if err == nil {
			t.Fatal("no operation leaves a change pending")
		}
	}
}

func TestASpoiltJournalIsNotApplied(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	j := newJob(t, rng, 1<<16, 0)
	for _, off := range []int{3, 20, 5000} {
		w := pending(t, j, rng)
		before := w.Content()
		if !w.Spoil("journal.ready", off) {
			t.Fatal("no journal")
		}
		_, err := apply.Open(w.Target(), w.Folder(), finish)
		if !errors.Is(err, redo.ErrDamaged) && !errors.Is(err, redo.ErrNotOurs) || !errors.Is(err, apply.ErrPending) {
			t.Errorf("byte %d: %v", off, err)
		}
		if !bytes.Equal(w.Content(), before) {
			t.Errorf("byte %d: the target was written to", off)
		}
	}
}

// Checksums are no proof against who made them: a journal with its data in another
// order than its target is refused before anything is read by its places.
func TestACraftedJournalIsNotApplied(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	j := job{old: noise(rng, 1<<16)}
	w := j.world(t, rng)
	f, err := w.Folder().Open("journal.ready", true)
	if err != nil {
		t.Fatal(err)
	}
	to := redo.NewWriter(f)
	for off := int64(0); off < 1<<16; off += 1 << 14 {
		if err := to.Data(off, noise(rng, 4096)); err != nil {
			t.Fatal(err)
		}
	}
	if err := to.Seal(1<<16, 1<<16, nil); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, to.Len())
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	at := binary.LittleEndian.Uint64(b[32:])
	table := b[at:]
	first, last := table[24+16:24+28], table[24+96+16:24+96+28] // place and checksum of the data
	was := bytes.Clone(first)
	copy(first, last)
	copy(last, was)
	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	binary.LittleEndian.PutUint32(table[20:], crc32.Update(crc32.Checksum(table[:20], castagnoli), castagnoli, table[24:]))
	if _, err := f.WriteAt(table, int64(at)); err != nil {
		t.Fatal(err)
	}
	_, err = apply.Open(w.Target(), w.Folder(), finish)
	if !errors.Is(err, redo.ErrDamaged) || !errors.Is(err, apply.ErrPending) {
		t.Error(err)
	}
	if !bytes.Equal(w.Content(), j.old) {
		t.Error("the target was written to")
	}
}

func TestAPendingChangeIsForItsTargetAlone(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	j := newJob(t, rng, 1<<16, 0)
	w := pending(t, j, rng)
	if err := w.Target().Resize(1 << 15); err != nil {
		t.Fatal(err)
	}
	before := w.Content()
	for _, o := range []apply.Options{{}, finish} {
		if _, err := apply.Open(w.Target(), w.Folder(), o); !errors.Is(err, transaction.ErrOther) {
			t.Errorf("%+v: %v, want ErrOther", o, err)
		}
	}
	if _, err := apply.Create(context.Background(), place{w.Folder()}, bytes.NewReader(j.stream), apply.Options{}); !errors.Is(err, apply.ErrPending) {
		t.Errorf("create: %v, want ErrPending", err)
	}
	if !bytes.Equal(w.Content(), before) {
		t.Error("the target was written to")
	}
}

// TestAWrittenTargetGetsNoOldChange gives what waits a target that was written to
// since the commit: by the interrupted run, or by somebody else.
func TestAWrittenTargetGetsNoOldChange(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	j := newJob(t, rng, 1<<16, 0)
	sawFinished := false
	each(func(n int) bool {
		w := j.world(t, rng)
		w.FailAfter(n)
		err := j.run(w)
		w.Calm()
		if !errors.Is(err, apply.ErrPending) {
			return err == nil
		}
		if _, err := w.Folder().Open("journal.ready", false); errors.Is(err, fs.ErrNotExist) {
			return false // removed, and only that is not durable
		}
		if bytes.Equal(w.Content(), j.old) {
			if _, err := apply.Open(w.Target(), w.Folder(), apply.Options{}); err == nil {
				sawFinished = true
				if !bytes.Equal(w.Content(), j.new) {
					t.Errorf("fail %d: an untouched target was not finished", n)
				}
				return false
			}
		}
		good := noise(rng, len(j.old))
		w.Scribble(0, good)
		if _, err := apply.Open(w.Target(), w.Folder(), apply.Options{}); !errors.Is(err, apply.ErrPending) || !errors.Is(err, transaction.ErrChanged) {
			t.Errorf("fail %d: %v, want ErrPending and ErrChanged", n, err)
		}
		if _, err := apply.Open(w.Target(), w.Folder(), apply.Options{Waiting: transaction.Discard}); err != nil {
			t.Error(err)
		}
		if !bytes.Equal(w.Content(), good) {
			t.Errorf("fail %d: the target was written to", n)
		}
		if s, err := apply.Open(w.Target(), w.Folder(), apply.Options{}); err != nil || s.Recovered() != "" {
			t.Errorf("fail %d: after the change was discarded: %v", n, err)
		}
		return false
	})
	if !sawFinished {
		t.Error("no target that nobody had written to was finished")
	}
}

// lying is a file whose data differs by a bit when it is read again.
type lying struct{ transaction.File }

func (f lying) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	if n > 0 && off > 0 && len(p) > 1<<20 { // data, of an apply
		p[len(p)/2] ^= 1
	}
	return n, err
}

type lyingFolder struct{ transaction.Folder }

func (d lyingFolder) Open(name string, create bool) (transaction.File, error) {
	f, err := d.Folder.Open(name, create)
	return lying{f}, err
}

// TestDataIsCheckedOnItsWay spoils the journal after the commit.
func TestDataIsCheckedOnItsWay(t *testing.T) {
	old := noise(rand.New(rand.NewPCG(1, 2)), 3<<20)
	var out bytes.Buffer
	w := erastream.NewWriter(&out)
	if err := errors.Join(w.Copy(erastream.Record{Len: 3 << 20}, bytes.NewReader(bytes.Repeat([]byte{7}, 3<<20))), w.Close()); err != nil {
		t.Fatal(err)
	}
	j := job{old: old}
	d := j.world(t, rand.New(rand.NewPCG(1, 2)))
	s, err := apply.Open(d.Target(), lyingFolder{d.Folder()}, apply.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Apply(context.Background(), &out, apply.Options{}); !errors.Is(err, apply.ErrPending) || !errors.Is(err, redo.ErrDamaged) {
		t.Errorf("%v, want ErrPending and ErrDamaged", err)
	}
	if !bytes.Equal(d.Content(), old) {
		t.Error("damaged data was written")
	}
}

func TestAPendingChangeIsNoMirror(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	w := pending(t, newJob(t, rng, 1<<16, 0), rng)
	if _, err := mirror.Open(w.Target(), w.Folder()); err == nil {
		t.Error("a mirror was opened over a change that waits")
	}
}

func TestReportsCountWhatHappened(t *testing.T) {
	var out bytes.Buffer
	w := erastream.NewWriter(&out)
	zeros := make([]byte, 256<<10)
	data := bytes.Repeat([]byte{7}, 4096)
	for _, p := range []struct {
		off  int64
		data []byte
	}{{0, data}, {64 << 10, zeros}, {1 << 20, data}} {
		if err := w.Copy(erastream.Record{Off: p.off, Len: int64(len(p.data))}, bytes.NewReader(p.data)); err != nil {
			t.Fatal(err)
		}
	}
	d := faultdisk.New(rand.New(rand.NewPCG(1, 2)))
	var told []string
	o := apply.Options{Size: 2 << 20, Progress: func(p apply.Phase, done, total int64) {
		told = append(told, fmt.Sprint(p, done, total))
	}}
	rep, err := apply.Create(context.Background(), place{d.Folder()}, bytes.NewReader(out.Bytes()), o)
	if err != nil {
		t.Fatal(err)
	}
	if rep.Records != 3 || rep.Bytes != 264<<10 || rep.Zeros != 256<<10 || rep.Size != 2<<20 || !rep.Created || rep.Journal != 0 {
		t.Errorf("%+v", rep)
	}
	target := d.Target()
	if err := target.Resize(1<<20 + 4096); err != nil {
		t.Fatal(err)
	}
	s, err := apply.Open(target, d.Folder(), apply.Options{})
	if err != nil {
		t.Fatal(err)
	}
	told = nil
	rep, err = s.Apply(context.Background(), bytes.NewReader(out.Bytes()), apply.Options{Progress: o.Progress})
	if err != nil || rep.Zeros != 256<<10 || rep.Created || rep.Journal < 4096 || rep.Journal > 32<<10 {
		t.Errorf("%+v, %v", rep, err)
	}
	if want := fmt.Sprint(apply.PhaseWrite, 264<<10, 264<<10); len(told) == 0 || told[len(told)-1] != want {
		t.Errorf("%q, want %q in the end", told, want)
	}
}
