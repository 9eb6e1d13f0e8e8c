package transaction_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark/extent"
	"tidemark/format/redo"
	"tidemark/internal/faultdisk"
	"tidemark/transfer/transaction"
)

const blob = "the next state"

// plan is a change: passes of pieces of a target, in any order.
type plan struct {
	old, new []byte
	passes   [][]piece
}

// piece is data, or zeros where data is nil.
type piece struct {
	extent.Extent
	data []byte
}

// newPlan makes a plan whose pieces begin and end at multiples of unit bytes.
func newPlan(rng *rand.Rand, size, unit int) plan {
	p := plan{old: noise(rng, size)}
	p.new = bytes.Clone(p.old)
	for range 1 + rng.IntN(3) {
		var pass []piece
		for at := rng.IntN(4) * unit; at < size; {
			n := min((1+rng.IntN(6))*unit, size-at)
			x := piece{Extent: extent.Extent{Off: int64(at), Len: int64(n)}}
			if rng.IntN(4) > 0 {
				x.data = noise(rng, n)
				copy(p.new[at:], x.data)
			} else {
				clear(p.new[at : at+n])
			}
			pass = append(pass, x)
			at += n + rng.IntN(6)*unit
		}
		rng.Shuffle(len(pass), func(i, k int) { pass[i], pass[k] = pass[k], pass[i] })
		p.passes = append(p.passes, pass)
	}
	return p
}

func noise(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// begin records the plan in a new transaction.
func (p plan) begin(target transaction.Target, folder transaction.Folder) (*transaction.Txn, error) {
	t, err := transaction.Begin(context.Background(), target, folder)
	for _, pass := range p.passes {
		for _, x := range pass {
			switch {
			case err != nil:
			case x.data == nil:
				err = t.Zero(x.Extent)
			default:
				err = t.Data(x.Off, x.data)
			}
		}
		if err == nil {
			t.NextPass()
		}
	}
	return t, err
}

var errCommitted = errors.New("committed")

// run brings the plan to the target.
func (p plan) run(target transaction.Target, folder transaction.Folder, steps transaction.Steps) error {
	t, err := p.begin(target, folder)
	if err == nil {
		err = t.Seal(context.Background(), int64(len(p.new)), []byte(blob))
	}
	if err == nil {
		err = t.Publish()
	}
	if err == nil {
		err = t.Finish(context.Background(), steps)
	}
	if err != nil && t != nil {
		if t.Committed() {
			err = fmt.Errorf("%w: %w", errCommitted, err)
		}
		err = errors.Join(err, t.Abort())
	}
	return err
}

// owned are the steps of an owner that takes the blob for its own.
func owned() transaction.Steps {
	return transaction.Steps{Check: func(_ int64, b []byte) (bool, error) {
		if string(b) != blob {
			return false, fmt.Errorf("blob %q", b)
		}
		return false, nil
	}}
}

// disk is a world that holds content.
func disk(t *testing.T, rng *rand.Rand, content []byte) *faultdisk.World {
	t.Helper()
	w := faultdisk.New(rng)
	target := w.Target()
	_, err := target.WriteAt(content, 0)
	if err = errors.Join(err, target.Sync()); err != nil {
		t.Fatal(err)
	}
	return w
}

func TestWhateverCrashesTheTargetIsOldOrNew(t *testing.T) {
	seed := rand.Uint64()
	size := 1 << 15
	if testing.Short() {
		size = 1 << 12
	}
	for round := range uint64(2) {
		p := newPlan(rand.New(rand.NewPCG(seed, round)), size, 512)
		faultdisk.Change{
			World:   func(rng *rand.Rand) *faultdisk.World { return disk(t, rng, p.old) },
			Run:     func(w *faultdisk.World) error { return p.run(w.Target(), w.Folder(), owned()) },
			Recover: func(w *faultdisk.World) error { return recovered(w, transaction.FinishSame) },
			Old:     p.old, New: p.new,
			Committed: func(err error) bool { return errors.Is(err, errCommitted) },
		}.Crash(t, seed+round)
	}
}

func recovered(w *faultdisk.World, policy transaction.Policy) error {
	_, err := transaction.Recover(w.Target(), w.Folder(), policy, owned())
	return err
}

// TestTheOwnerSeesAllThatIsWritten keeps a copy by the Steps alone.
func TestTheOwnerSeesAllThatIsWritten(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	p := newPlan(rng, 1<<20, 4096)
	w := disk(t, rng, p.old)
	copied := bytes.Clone(p.old)
	var mu sync.Mutex
	var told []string
	var last int64
	steps := transaction.Steps{
		Resized: func(size int64) error { told = append(told, fmt.Sprint("resized ", size)); return nil },
		Wrote: func(e extent.Extent, data []byte) error {
			mu.Lock()
			defer mu.Unlock()
			if data == nil {
				data = make([]byte, e.Len)
			}
			copy(copied[e.Off:], data)
			return nil
		},
		Synced:   func(s transaction.Stamp) error { told = append(told, fmt.Sprint("synced ", s.Telling())); return nil },
		Progress: func(done, total int64) { last = total - done },
	}
	if err := p.run(w.Target(), w.Folder(), steps); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(w.Content(), p.new) || !bytes.Equal(copied, p.new) || last != 0 {
		t.Errorf("target %v, copy %v, %d bytes to go", bytes.Equal(w.Content(), p.new), bytes.Equal(copied, p.new), last)
	}
	if want := fmt.Sprint([]string{"resized 1048576", "synced true"}); fmt.Sprint(told) != want {
		t.Errorf("%q, want %q", told, want)
	}
}

// waiting is a world with a committed change that has not reached the target.
func waiting(t *testing.T, p plan) *faultdisk.World {
	t.Helper()
	w := disk(t, rand.New(rand.NewPCG(3, 4)), p.old)
	x, err := p.begin(w.Target(), w.Folder())
	if err == nil {
		err = x.Seal(context.Background(), int64(len(p.new)), []byte(blob))
	}
	if err == nil {
		err = x.Publish()
	}
	if err = errors.Join(err, x.Abort()); err != nil {
		t.Fatal(err)
	}
	return w
}

func TestAChangeIsForItsTargetAlone(t *testing.T) {
	p := newPlan(rand.New(rand.NewPCG(1, 2)), 1<<14, 512)
	type policies map[transaction.Policy]error
	for name, x := range map[string]struct {
		happens func(w *faultdisk.World)
		want    policies // nil: it is finished
	}{
		"nothing": {func(*faultdisk.World) {}, policies{transaction.FinishUntouched: nil, transaction.FinishSame: nil, transaction.Finish: nil}},
		"a write": {func(w *faultdisk.World) { w.Scribble(1<<13, nil) }, policies{transaction.FinishUntouched: transaction.ErrChanged, transaction.FinishSame: nil, transaction.Finish: nil}},
		"a copy":  {(*faultdisk.World).Replace, policies{transaction.FinishUntouched: transaction.ErrChanged, transaction.FinishSame: transaction.ErrOther, transaction.Finish: nil}},
		"a size":  {func(w *faultdisk.World) { w.Stretch(1 << 13) }, policies{transaction.FinishSame: transaction.ErrOther, transaction.Finish: transaction.ErrOther}},
	} {
		for policy, want := range x.want {
			w := waiting(t, p)
			x.happens(w)
			before := w.Content()
			err := recovered(w, policy)
			switch {
			case want == nil && (err != nil || !bytes.Equal(w.Content(), p.new)):
				t.Errorf("%s, policy %d: %v", name, policy, err)
			case want != nil && (!errors.Is(err, want) || !bytes.Equal(w.Content(), before)):
				t.Errorf("%s, policy %d: %v, want %v and an untouched target", name, policy, err, want)
			}
			if pending, err := transaction.Pending(w.Folder()); err != nil || pending != (want != nil) {
				t.Errorf("%s, policy %d: pending %v, %v", name, policy, pending, err)
			}
		}
	}
	w := waiting(t, p)
	if _, err := transaction.Recover(w.Target(), w.Folder(), transaction.Finish, transaction.Steps{}); !errors.Is(err, transaction.ErrOtherOwner) {
		t.Errorf("a journal with a blob that nobody looked at: %v", err)
	}
	if done, err := transaction.Recover(w.Target(), w.Folder(), transaction.Discard, transaction.Steps{}); err != nil || done != transaction.Discarded {
		t.Errorf("discard: %v, %v", done, err)
	}
	if !bytes.Equal(w.Content(), p.old) {
		t.Error("the target was written to")
	}
}

// All of a journal is checked before the first byte of it is written.
func TestASpoiltJournalIsNotApplied(t *testing.T) {
	p := newPlan(rand.New(rand.NewPCG(1, 2)), 4<<20, 4096)
	for _, off := range []int{3, 70, 5000, 1<<20 + 77, 2 << 20} {
		w := waiting(t, p)
		if !w.Spoil(transaction.ReadyFile, off) {
			t.Fatal("no journal")
		}
		if err := recovered(w, transaction.Finish); !errors.Is(err, redo.ErrDamaged) && !errors.Is(err, redo.ErrNotOurs) {
			t.Errorf("byte %d: %v", off, err)
		}
		if !bytes.Equal(w.Content(), p.old) {
			t.Errorf("byte %d: the target was written to", off)
		}
	}
}

func TestPiecesOfOnePassMayNotOverlap(t *testing.T) {
	w := disk(t, rand.New(rand.NewPCG(1, 2)), make([]byte, 1<<14))
	x, err := transaction.Begin(t.Context(), w.Target(), w.Folder())
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(x.Data(0, make([]byte, 1024)), x.Data(512, make([]byte, 1024)))
	if err := errors.Join(err, x.Seal(t.Context(), 1<<14, nil)); err == nil || !strings.Contains(err.Error(), "overlap") {
		t.Errorf("seal: %v", err)
	}
	if err := x.Publish(); err == nil {
		t.Error("published after an error")
	}
	if err := x.Abort(); err != nil {
		t.Error(err)
	}
	if _, err := w.Folder().Open("journal", false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the journal is left: %v", err)
	}
}

func TestAWriterBeforeTheSealIsNoticed(t *testing.T) {
	w := disk(t, rand.New(rand.NewPCG(1, 2)), make([]byte, 1<<14))
	x, err := transaction.Begin(t.Context(), w.Target(), w.Folder())
	if err == nil {
		err = x.Data(0, make([]byte, 512))
	}
	if err != nil {
		t.Fatal(err)
	}
	w.Scribble(4096, []byte("mine"))
	if err := x.Seal(t.Context(), 1<<14, nil); !errors.Is(err, transaction.ErrChanged) {
		t.Errorf("%v, want ErrChanged", err)
	}
}

// ways is a target that can be written to past its cache, and that notices both ways.
type ways struct {
	transaction.Target
	mu             sync.Mutex
	cached, direct int
	refuse         bool // the first direct write
}

func (w *ways) count(n *int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	*n++
}

func (w *ways) WriteAt(p []byte, off int64) (int, error) {
	w.count(&w.cached)
	return w.Target.WriteAt(p, off)
}

func (w *ways) Uncached() (transaction.UncachedWriter, error) { return past{w}, nil }

type past struct{ *ways }

func (p past) WriteAt(b []byte, off int64) (int, error) {
	p.count(&p.direct)
	if p.refuse {
		return 0, unix.EINVAL
	}
	return p.Target.WriteAt(b, off)
}

func (p past) Close() error { return nil }

// The kernel does not keep writes past the page cache and through it in step.
func TestAJournalGoesPastThePageCacheAsAWholeOrNotAtAll(t *testing.T) {
	for name, x := range map[string]struct {
		unit, odd int
		refuse    bool
		direct    bool
	}{
		"aligned":             {unit: 128 << 10, direct: true},
		"with one odd piece":  {unit: 128 << 10, odd: 512},
		"of small pieces":     {unit: 4096},
		"refused by the disk": {unit: 128 << 10, refuse: true},
	} {
		p := newPlan(rand.New(rand.NewPCG(1, 2)), 8<<20, x.unit)
		if x.odd > 0 {
			odd := piece{Extent: extent.Extent{Off: 1 << 20, Len: int64(x.odd)}, data: make([]byte, x.odd)}
			p.passes = append(p.passes, []piece{odd})
			clear(p.new[odd.Off:odd.End()])
		}
		d := disk(t, rand.New(rand.NewPCG(1, 2)), p.old)
		w := &ways{Target: d.Target(), refuse: x.refuse}
		if err := p.run(w, d.Folder(), owned()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !bytes.Equal(d.Content(), p.new) {
			t.Errorf("%s: not the new content", name)
		}
		if x.direct && w.cached > 0 || !x.direct && w.cached == 0 || !x.refuse && w.direct > 0 && w.cached > 0 || !x.direct && !x.refuse && w.direct > 0 {
			t.Errorf("%s: %d writes through the page cache and %d past it", name, w.cached, w.direct)
		}
	}
}
