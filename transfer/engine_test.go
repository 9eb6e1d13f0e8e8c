package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"tidemark/extent"
	"tidemark/internal/sinktest"
	"tidemark/transfer"
	"tidemark/view"
)

// bench is the engine over a source, a tracker, a view and sinks in memory.
type bench struct {
	t     *testing.T
	rng   *rand.Rand
	seas  []*sea
	sinks []*sinktest.Memory
	views []*stillness
	o     transfer.Options
}

func newBench(t *testing.T, seas int) *bench {
	t.Helper()
	b := &bench{t: t, rng: rand.New(rand.NewPCG(7, 7))}
	for range seas {
		s := newSea(b.rng, 12*blockSize-512)
		for n := range s.blocks() {
			s.fillBlock(int64(n), byte(41+n%3))
		}
		b.seas = append(b.seas, s)
		b.sinks = append(b.sinks, sinktest.NewMemory(blockSize))
		b.views = append(b.views, &stillness{s: s, stops: true})
	}
	b.o = transfer.Options{MaxFreeze: time.Hour, Readers: 2}
	return b
}

// run makes one run of all pairs.
func (b *bench) run() ([]transfer.Report, error) {
	var pairs []*transfer.Pair
	for i, s := range b.seas {
		pairs = append(pairs, &transfer.Pair{
			Name: fmt.Sprint("sea ", i), Target: fmt.Sprint("sink ", i), Source: s, Owner: "bench",
			Tracker: &watcher{s, map[string]bool{}}, Sink: b.sinks[i],
		})
	}
	o := b.o
	if o.View == nil {
		o.View = together{b.views}
	}
	ctx, cancel := context.WithTimeout(b.t.Context(), time.Minute) // a wait that does not end is an error
	defer cancel()
	return transfer.Run(ctx, pairs, o)
}

func (b *bench) mustRun() []transfer.Report {
	b.t.Helper()
	reports, err := b.run()
	if err != nil {
		b.t.Fatal(err)
	}
	for i, s := range b.sinks {
		if !bytes.Equal(s.Content(), b.views[i].moment) {
			b.t.Fatalf("sink %d is not what its source was at the instant", i)
		}
	}
	return reports
}

// together is the view of several seas.
type together struct{ views []*stillness }

func (together) Kind() string                { return "model" }
func (v together) Traits() view.Traits       { return v.views[0].Traits() }
func (together) Flush(context.Context) error { return nil }

func (v together) Take(ctx context.Context, instant func(context.Context) error) (view.View, error) {
	var h togetherHeld
	for _, one := range v.views {
		held, err := one.Take(ctx, func(context.Context) error { return nil })
		if err != nil {
			return nil, err
		}
		h = append(h, held)
	}
	return h, instant(ctx)
}

type togetherHeld []view.View

func (h togetherHeld) Source(i int) view.Source { return h[i].Source(0) }
func (h togetherHeld) Since() time.Time         { return h[0].Since() }
func (togetherHeld) Broken() <-chan struct{}    { return nil }

func (h togetherHeld) Close() (r view.Report, err error) {
	for _, one := range h {
		_, oneErr := one.Close()
		err = errors.Join(err, oneErr)
	}
	return r, err
}

func TestARunReadsOnlyWhatChanged(t *testing.T) {
	b := newBench(t, 1)
	if rep := b.mustRun()[0]; rep.Mode != "full" || rep.Read != 12*blockSize-512 {
		t.Errorf("the first run: %s, %d bytes read", rep.Mode, rep.Read)
	}
	b.seas[0].mark(3)
	b.seas[0].fillBlock(3, 63)
	if rep := b.mustRun()[0]; rep.Mode != "incremental" || rep.Read != blockSize || rep.Written != blockSize || rep.Changed != blockSize {
		t.Errorf("the second run: %+v", rep)
	}
	b.seas[0].forget()
	if rep := b.mustRun()[0]; rep.Mode != "scan" || rep.MarkLost == "" || rep.Read != 12*blockSize-512 || rep.Written != 0 {
		t.Errorf("after the mark was lost: %+v", rep)
	}
}

// What several sinks get is of one instant, whichever step of whichever sink fails: all
// are sealed before the first is published, and published before the first is finished.
func TestSinksOfOneRunAreCommittedInStep(t *testing.T) {
	for fail := 0; ; fail++ {
		b := newBench(t, 3)
		b.mustRun()
		var steps []string
		for i, s := range b.seas {
			s.mark(1)
			s.fillBlock(1, 63)
			b.sinks[i].Before = func(step string) { steps = append(steps, step) }
		}
		b.sinks[1].FailAfter(fail)
		reports, err := b.run()
		if err == nil {
			if fail < 4 {
				t.Fatalf("%d steps at most failed", fail)
			}
			order := strings.Join(steps[len(steps)-9:], " ")
			if want := "seal seal seal publish publish publish finish finish finish"; order != want {
				t.Errorf("the steps were %s", order)
			}
			return
		}
		if !errors.Is(err, sinktest.ErrInjected) {
			t.Fatal(err)
		}
		failed := steps[len(steps)-1]
		for i, rep := range reports {
			pending := strings.HasPrefix(rep.Outcome, "pending: ")
			if want := failed == "finish" && i > 0 || failed == "publish" && i == 0; pending != want {
				t.Errorf("failed to %s: the outcome of sink %d is %q", failed, i, rep.Outcome)
			}
			if ok := rep.Outcome == "ok"; ok != (failed == "finish" && i == 0) {
				t.Errorf("failed to %s: the outcome of sink %d is %q", failed, i, rep.Outcome)
			}
		}
	}
}

// snapshot is a view whose users go on while another source is read.
type snapshot struct {
	*stillness
	copy *sea
}

func (*snapshot) Traits() view.Traits { return view.Traits{Apart: true} }

func (v *snapshot) Take(ctx context.Context, instant func(context.Context) error) (view.View, error) {
	held, err := v.stillness.Take(ctx, instant)
	v.copy = &sea{data: slices.Clone(v.s.data)}
	v.s.held = false
	v.s.write() // the origin goes on
	return &snapshotHeld{held, v}, err
}

type snapshotHeld struct {
	view.View
	v *snapshot
}

func (h *snapshotHeld) Source(int) view.Source { return h.v.copy }
func (h *snapshotHeld) Since() time.Time       { return time.Now().Add(-24 * time.Hour) }

func (h *snapshotHeld) Close() (view.Report, error) {
	h.v.moment = h.v.copy.data
	return view.Report{}, nil
}

func TestASnapshotIsReadWhileItsOriginGoesOn(t *testing.T) {
	b := newBench(t, 1)
	b.o.HoldBytes = 1 // nothing may be held: nobody waits
	s := &snapshot{stillness: b.views[0]}
	b.o.View = s
	for range 20 {
		b.mustRun()
		for range 4 {
			b.seas[0].write()
		}
		b.seas[0].drain()
	}
}

// late is a view under which the source is discarded from a while longer, as below a
// frozen XFS: each round finds the block that it has read before written again.
type late struct {
	*stillness
	rounds int
}

func (v *late) Take(ctx context.Context, instant func(context.Context) error) (view.View, error) {
	v.s.mark(0)
	held, err := v.stillness.Take(ctx, instant)
	return &lateHeld{held, v}, err
}

type lateHeld struct {
	view.View
	v *late
}

func (h *lateHeld) Source(int) view.Source { return lateSource{h.v} }

type lateSource struct{ *late }

func (s lateSource) ReadAt(p []byte, off int64) (int, error) {
	n, err := bytes.NewReader(s.s.data).ReadAt(p, off)
	if s.rounds > 0 {
		s.rounds--
		for b := range int64(8 >> s.rounds) {
			s.s.mark(b)
			s.s.fillBlock(b, byte(50+s.rounds))
		}
	}
	return n, err
}

func (s lateSource) Size() int64                              { return s.s.Size() }
func (s lateSource) CurrentSize() (int64, error)              { return s.s.Size(), nil }
func (s lateSource) Data(e extent.Extent) (extent.Set, error) { return s.s.Data(e) }

// What a later round copied past memory must not be overwritten by what an earlier one
// held: the rounds of one view hold no more than HoldBytes together.
func TestALaterRoundWinsOverWhatWasHeld(t *testing.T) {
	for room := range int64(12) {
		b := newBench(t, 1)
		b.o.Readers = 1
		b.mustRun()
		b.o.HoldBytes = 1 + room*blockSize
		v := &late{b.views[0], 3}
		b.o.View = v
		if b.mustRun(); v.rounds > 0 {
			t.Errorf("%d rounds were not made", v.rounds)
		}
	}
}

// slow is a view that its users' patience ends.
type slow struct {
	*stillness
	taken int
	left  int // views that end too early
}

func (v *slow) Take(ctx context.Context, instant func(context.Context) error) (view.View, error) {
	v.taken++
	held, err := v.stillness.Take(ctx, instant)
	return &slowHeld{held, v}, err
}

type slowHeld struct {
	view.View
	v *slow
}

func (h *slowHeld) Close() (view.Report, error) {
	h.View.Close()
	if h.v.left == 0 {
		return view.Report{}, nil
	}
	h.v.left--
	return view.Report{Frozen: time.Second}, fmt.Errorf("%w: %w", view.ErrBroken, view.ErrTimeUp)
}

func TestAViewThatTookTooLongIsTakenAgain(t *testing.T) {
	for _, left := range []int{0, 1, transfer.MaxAttempts - 1, transfer.MaxAttempts} {
		b := newBench(t, 1)
		v := &slow{stillness: b.views[0], left: left}
		b.o.View = v
		reports, err := b.run()
		switch {
		case left == transfer.MaxAttempts:
			if !errors.Is(err, transfer.ErrNotConverging) || v.taken != left {
				t.Errorf("after %d views: %v", v.taken, err)
			}
		case err != nil || v.taken != left+1 || reports[0].Frozen != time.Duration(left)*time.Second:
			t.Errorf("%d views of %d, frozen for %v: %v", v.taken, left+1, reports[0].Frozen, err)
		}
	}
}

// apart is a view that shows what its sea held, while users go on.
type apart struct{ *stillness }

func (apart) Kind() string        { return "apart" }
func (apart) Traits() view.Traits { return view.Traits{Apart: true} }

func (v apart) Take(ctx context.Context, instant func(context.Context) error) (view.View, error) {
	v.s.mu.Lock()
	v.s.drain()
	shown := newSea(rand.New(rand.NewPCG(1, 1)), len(v.s.data))
	copy(shown.data, v.s.data)
	v.moment = slices.Clone(v.s.data)
	v.s.mu.Unlock()
	err := instant(ctx)
	v.s.mark(2)
	v.s.fillBlock(2, 99)
	return apartHeld{shown}, err
}

type apartHeld struct{ s *sea }

func (h apartHeld) Source(int) view.Source    { return h.s }
func (apartHeld) Since() time.Time            { return time.Now() }
func (apartHeld) Broken() <-chan struct{}     { return nil }
func (apartHeld) Close() (view.Report, error) { return view.Report{}, nil }

func TestAFreezeGivesWayToASnapshotWhenTooMuchIsLeft(t *testing.T) {
	for _, left := range []int{transfer.MaxAttempts - 1, transfer.MaxAttempts} {
		b := newBench(t, 1)
		v := &slow{stillness: b.views[0], left: left}
		b.o.View, b.o.Apart = v, apart{b.views[0]}
		kind := map[bool]string{true: "apart", false: "model"}[left == transfer.MaxAttempts]
		if rep := b.mustRun()[0]; rep.View != kind || v.taken != transfer.MaxAttempts {
			t.Errorf("after %d views that took too long: %d taken, then the view %s", left, v.taken, rep.View)
		}
	}
}

// A limit on what is read must not make users wait.
func TestALimitIsForTheTimeInWhichNobodyWaits(t *testing.T) {
	b := newBench(t, 1)
	b.mustRun()
	b.o.HoldBytes = 1 // past memory, by the same way as while the source is in use
	b.o.View = &late{b.views[0], 0}
	b.o.Limit = rate.NewLimiter(rate.Every(time.Hour), 1)
	b.o.Limit.AllowN(time.Now(), 1)
	b.mustRun() // or it takes an hour for each byte
}

// While users wait nothing is told and nothing is put where that could wait for them.
func TestNothingIsPutWhileUsersWait(t *testing.T) {
	b := newBench(t, 1)
	check := func(what string) {
		if b.seas[0].held {
			t.Errorf("%s while users wait", what)
		}
	}
	b.sinks[0].Before = check
	b.o.Progress = func(e transfer.Event) { check("told " + e.Phase) }
	for range 5 {
		b.mustRun()
		b.seas[0].mark(2)
		b.seas[0].fillBlock(2, byte(b.rng.IntN(64)))
	}
}
