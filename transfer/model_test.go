package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tidemark/extent"
	"tidemark/format/state"
	"tidemark/internal/faultdisk"
	"tidemark/track"
	"tidemark/transfer"
	"tidemark/transfer/mirror"
	"tidemark/transfer/transaction"
	"tidemark/view"
)

var (
	sequences = flag.Int("sequences", 1500, "random sequences of the model test")
	firstSeed = flag.Uint64("seed", uint64(time.Now().UnixNano()), "seed of its first sequence")
)

const (
	blockSize = 4096
	maxBlocks = 24
)

// sea is a source that is written to while it is read, and the tracker that sees
// the writes: a plain model of both.
type sea struct {
	mu    sync.Mutex
	rng   *rand.Rand
	name  string
	data  []byte
	epoch int
	// sets[i] is what changed in epoch i; oldest is the first that is known.
	sets     []map[int64]bool
	oldest   int
	doubt    bool
	doubted  int             // last epoch in which a completion went unseen
	settled  map[string]bool // marks at which nothing was in flight
	inFlight []flight
	writes   int
	held     bool
	busy     bool // written to during reads
	rogue    bool // written to while held
}

// flight is a write that was queued in one epoch and reaches the disk later.
type flight struct {
	block int64
	fill  byte
}

func newSea(rng *rand.Rand, size int) *sea {
	return &sea{rng: rng, name: "sea", data: make([]byte, size), sets: []map[int64]bool{{}}, settled: map[string]bool{}}
}

// become makes it another source of the same size, whose tracker knows nothing of
// that: a partition beside the one that it was.
func (s *sea) become() {
	s.drain()
	s.name += "'"
	for b := range s.blocks() {
		s.fillBlock(int64(b), byte(s.rng.IntN(64)))
	}
}

func (s *sea) blocks() int { return (len(s.data) + blockSize - 1) / blockSize }

func (s *sea) mark(block int64) { s.sets[s.epoch][block] = true }

func (s *sea) fillBlock(block int64, fill byte) {
	b := s.data[block*blockSize : min((block+1)*blockSize, int64(len(s.data)))]
	if fill < 40 { // zeros are common on disks
		clear(b)
		return
	}
	for i := range b {
		b[i] = fill % 44 // few values, so that old content comes back
	}
}

// write changes a block the way a disk does: queued (and marked), on the disk,
// completed (and marked). It may stay in flight for a while.
func (s *sea) write() {
	w := flight{block: s.rng.Int64N(int64(s.blocks())), fill: byte(s.rng.IntN(64))}
	s.mark(w.block)
	s.writes++
	if s.rng.IntN(3) == 0 && !s.held {
		s.inFlight = append(s.inFlight, w)
		return
	}
	s.land(w)
}

func (s *sea) land(w flight) {
	s.fillBlock(w.block, w.fill)
	if s.rng.IntN(30) == 0 {
		s.doubt = true // the completion went unseen
		return
	}
	s.mark(w.block)
}

func (s *sea) landSome() {
	for len(s.inFlight) > 0 && s.rng.IntN(2) == 0 {
		s.land(s.inFlight[0])
		s.inFlight = s.inFlight[1:]
	}
}

// drain lands everything, as a freeze does.
func (s *sea) drain() {
	for _, w := range s.inFlight {
		s.land(w)
	}
	s.inFlight = nil
}

func (s *sea) ReadAt(p []byte, off int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy && !s.held || s.rogue && s.held && s.rng.IntN(4) == 0 {
		s.landSome()
		if s.rng.IntN(3) == 0 {
			s.write()
		}
	}
	return bytes.NewReader(s.data).ReadAt(p, off)
}

func (s *sea) Size() int64                              { return int64(len(s.data)) }
func (s *sea) CurrentSize() (int64, error)              { return int64(len(s.data)), nil }
func (s *sea) Data(e extent.Extent) (extent.Set, error) { return extent.NewSet(e), nil }

// the tracker

// watcher is the tracker of one run.
type watcher struct {
	*sea
	own map[string]bool
}

func (s *watcher) Kind() string                  { return "model" }
func (s *watcher) Granularity() int64            { return blockSize }
func (s *watcher) Close() error                  { return nil }
func (s *watcher) Persist(context.Context) error { return nil }
func (s *watcher) Traits() track.Traits          { return track.Traits{NamesChanges: true} }
func (s *watcher) Drain(context.Context) error   { return nil }

func (s *watcher) Cut(context.Context) (track.Cut, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epoch++
	s.sets = append(s.sets, map[int64]bool{})
	doubt := s.doubt
	if doubt {
		s.doubted = s.epoch - 1
	}
	s.doubt = false
	mark := fmt.Sprint(s.epoch)
	s.own[mark] = true
	return track.Cut{Mark: track.Mark(mark), Doubt: doubt}, nil
}

func (s *watcher) Changes(_ context.Context, since, until track.Mark) (extent.Set, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	from, to := 0, len(s.sets)
	if _, err := fmt.Sscan(string(since), &from); err != nil || from < s.oldest {
		return extent.Set{}, &track.LostError{Mark: since, Reason: "the model forgot it"}
	}
	if m := string(since); (s.doubted >= from || s.doubt) && !s.own[m] && !s.settled[m] {
		return extent.Set{}, &track.LostError{Mark: since, Reason: "completions may have gone unseen"}
	}
	if until != "" {
		if _, err := fmt.Sscan(string(until), &to); err != nil {
			return extent.Set{}, err
		}
	}
	var exts []extent.Extent
	for _, set := range s.sets[from:to] {
		for block := range set {
			off := block * blockSize
			exts = append(exts, extent.Extent{Off: off, Len: min(blockSize, int64(len(s.data))-off)})
		}
	}
	return extent.NewSet(exts...), nil
}

func (s *watcher) Vouch(ctx context.Context, m track.Mark) error {
	_, err := s.Changes(ctx, m, "")
	return err
}

func (s *watcher) Keep(_ context.Context, _ string, m track.Mark, quiet bool) error {
	if quiet {
		s.settled[string(m)] = true
	}
	return nil
}

// forget makes every mark so far a lost one, as a reboot does.
func (s *sea) forget() { s.oldest = s.epoch + 1 }

// stillness is a view of a sea: the moment it is held is remembered.
type stillness struct {
	s       *sea
	broken  bool
	stops   bool // its users wait
	watches bool // sees writes itself, as a view must where the tracker cannot
	writes  int
	moment  []byte
}

func (v *stillness) Kind() string { return "model" }

func (v *stillness) Traits() view.Traits { return view.Traits{Stops: v.stops} }

func (v *stillness) Flush(context.Context) error { return nil }

func (v *stillness) Take(ctx context.Context, instant func(context.Context) error) (view.View, error) {
	v.s.mu.Lock()
	v.s.drain()
	v.s.held = true
	v.moment, v.writes = slices.Clone(v.s.data), v.s.writes
	v.s.mu.Unlock()
	return &stillnessHeld{v, time.Now()}, instant(ctx)
}

type stillnessHeld struct {
	v     *stillness
	since time.Time
}

func (h *stillnessHeld) Source(int) view.Source  { return h.v.s }
func (h *stillnessHeld) Since() time.Time        { return h.since }
func (h *stillnessHeld) Broken() <-chan struct{} { return nil }

func (h *stillnessHeld) Close() (view.Report, error) {
	h.v.s.mu.Lock()
	defer h.v.s.mu.Unlock()
	h.v.s.held = false
	if !h.v.watches {
		h.v.moment = slices.Clone(h.v.s.data) // the engine has to notice, and copy, later writes
	}
	if h.v.broken || h.v.watches && h.v.s.writes != h.v.writes {
		return view.Report{}, view.ErrBroken
	}
	return view.Report{}, nil
}

// world is a folder and a target that fail when told to.
type world interface {
	Folder() transaction.Folder
	Target() transaction.Target
	CutAfter(n int)  // everything fails from the nth change on, until Restart
	FailAfter(n int) // the nth change fails
	Calm()
	IsOff() bool
	Restart()
	Content() []byte
	Scribble(off int, p []byte) // as someone else
	Stretch(size int)           // as someone else
}

// history is one sequence of runs over one world.
type history struct {
	t     *testing.T
	seed  uint64
	rng   *rand.Rand
	sea   *sea
	world world
	// holds are the contents that the target may have; with unfinished the
	// first copy may not have ended, and then it may hold anything.
	holds      [][]byte
	unfinished bool
	scribbled  bool   // by someone else since the last commit
	stopped    bool   // the last run was told to stop: it did not wait for the clock
	unchecked  bool   // nobody has looked at what the last run left
	pending    int    // runs that failed after they had committed
	outcome    string // of the last run, unless it could not begin
}

func (h *history) fatalf(format string, args ...any) {
	h.t.Helper()
	h.t.Fatalf("-seed %d: %s", h.seed, fmt.Sprintf(format, args...))
}

// run makes one run and returns its error.
func (h *history) run() error {
	h.outcome = ""
	target, folder := h.world.Target(), h.world.Folder()
	store, err := mirror.Open(target, folder)
	if err != nil {
		return err
	}
	defer store.Close()
	st, origin := store.State(), state.Source{Path: h.sea.name}
	stranger := store.Exists() && st.Source != origin
	if !store.Exists() || !st.Complete && (stranger || st.Size != h.sea.Size()) {
		if err := store.Init(h.sea.Size(), blockSize, origin, len(h.world.Content()) > 0); err != nil {
			return err
		}
	}
	still := &stillness{s: h.sea, broken: h.rng.IntN(12) == 0, stops: h.rng.IntN(4) > 0}
	var tracker track.Tracker = &watcher{h.sea, map[string]bool{}}
	if h.rng.IntN(8) == 0 {
		tracker, still.watches = track.NewScan(h.sea.Size()), true
	}
	pair := &transfer.Pair{
		Name: h.sea.name, Target: "mirror", Source: h.sea, Tracker: tracker, Owner: "model", Freezes: still.stops && h.rng.IntN(2) == 0,
		Sink: &mirror.Sink{Store: store, Name: "mirror", Origin: origin, Other: stranger},
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stop := h.rng.IntN(40)
	reports, err := transfer.Run(ctx, []*transfer.Pair{pair}, transfer.Options{
		View: still, Readers: 2, Checkpoint: 3 * blockSize, MaxFreeze: time.Hour,
		Frozen: time.Second, HoldBytes: int64(1+h.rng.IntN(maxBlocks)) * blockSize,
		Progress: func(transfer.Event) {
			if stop--; stop == 0 {
				cancel()
			}
		},
	})
	h.stopped = ctx.Err() != nil
	if got := reports[0].Outcome; (got == "ok") != (err == nil) {
		h.fatalf("the outcome of a run that ended with %v is %q", err, got)
	}
	if reports[0].FrozenMS != 1000 {
		h.fatalf("a freeze before the run is not counted: %v ms", reports[0].FrozenMS)
	}
	if h.outcome = reports[0].Outcome; strings.HasPrefix(h.outcome, "pending: ") {
		h.pending++
	}
	switch {
	case err == nil:
		h.holds, h.scribbled = [][]byte{still.moment}, false
	case h.world.IsOff() || errors.Is(err, faultdisk.ErrInjected):
		if still.moment != nil {
			h.holds = append(h.holds, still.moment)
		}
	}
	if err == nil && still.broken {
		h.fatalf("a broken view was committed")
	}
	return err
}

// disturb plans a power cut, the failure of an operation, or nothing, within the
// next n changes.
func (h *history) disturb(n int) {
	switch h.rng.IntN(3) {
	case 0:
		h.world.CutAfter(h.rng.IntN(n))
	case 1:
		h.world.FailAfter(h.rng.IntN(n))
	}
}

// restart ends what disturb planned, and reports whether the power was cut.
func (h *history) restart() bool {
	cut := h.world.IsOff()
	if cut {
		h.world.Restart()
		h.outcome = "" // what had reached the disk, nobody could say
	}
	h.world.Calm()
	return cut
}

// recover opens the mirror a few times with more cuts and failures on the way. It
// returns how the run ended, or what happened since.
func (h *history) recover(ran error) error {
	for range h.rng.IntN(4) {
		h.disturb(12)
		store, err := mirror.Open(h.world.Target(), h.world.Folder())
		if err == nil {
			store.Close()
		} else if !h.world.IsOff() && !errors.Is(err, faultdisk.ErrInjected) {
			h.fatalf("open: %v", err)
		}
		if h.restart() || err != nil {
			ran = errors.Join(ran, fmt.Errorf("and a recovery that ended with %v", err))
		}
	}
	return ran
}

// check holds the target of a complete mirror against what it may hold.
func (h *history) check(ran error) {
	h.t.Helper()
	when := fmt.Sprintf("after a run that ended with %v", ran)
	store, err := mirror.Open(h.world.Target(), h.world.Folder())
	if err != nil {
		h.fatalf("%s: open: %v", when, err)
	}
	defer store.Close()
	if failed := h.outcome != "" && !strings.HasPrefix(h.outcome, "pending: "); failed && strings.HasPrefix(store.Recovered(), "finished") {
		h.fatalf("%s: the outcome %q is of a run that was committed", when, h.outcome)
	}
	if !store.Exists() || !store.State().Complete {
		if !h.unfinished {
			h.fatalf("%s: a complete mirror is incomplete", when)
		}
		h.holds = nil
		return
	}
	if why := store.Suspect(); !h.scribbled && why != "" && ran == nil && !h.stopped {
		h.fatalf("%s: our own writes look like those of someone else: %s", when, store.Suspect())
	}
	h.unfinished = false
	got := h.world.Content()
	i := slices.IndexFunc(h.holds, func(b []byte) bool { return bytes.Equal(b, got) })
	if i < 0 {
		h.fatalf("%s: the target is neither old nor new (%d candidates)%s", when, len(h.holds), h.difference(got))
	}
	if h.holds = h.holds[i : i+1]; h.scribbled && i == 0 {
		return
	}
	h.scribbled = false
	bad, err := store.Check(context.Background(), nil)
	if err != nil || !bad.Empty() {
		h.fatalf("%s: checksums differ at %v: %v", when, bad.Extents(), err)
	}
}

func (h *history) difference(got []byte) string {
	var out strings.Builder
	for i, want := range h.holds {
		fmt.Fprintf(&out, "\ncandidate %d of %d bytes:", i, len(want))
		for b := 0; b*blockSize < min(len(got), len(want)); b++ {
			end := min((b+1)*blockSize, len(got), len(want))
			if !bytes.Equal(got[b*blockSize:end], want[b*blockSize:end]) {
				fmt.Fprintf(&out, " %d:%d≠%d", b, got[b*blockSize], want[b*blockSize])
			}
		}
	}
	return out.String()
}

// between changes the world between two runs.
func (h *history) between() {
	h.sea.mu.Lock()
	defer h.sea.mu.Unlock()
	for range h.rng.IntN(6) {
		h.sea.write()
	}
	switch h.rng.IntN(12) {
	case 0:
		h.sea.forget()
	case 1:
		h.resize()
	case 2:
		if n := len(h.world.Content()); n > blockSize && !h.unfinished && !h.unchecked {
			h.world.Scribble(h.rng.IntN(n-10), []byte("graffiti"))
			h.holds = [][]byte{h.world.Content()}
			h.scribbled = true
		}
	case 3:
		if n := len(h.world.Content()); n > 0 && !h.unfinished && !h.unchecked {
			h.world.Stretch(1 + h.rng.IntN(2*n))
			h.holds = [][]byte{h.world.Content()}
			h.scribbled = true
		}
	case 4:
		h.sea.become()
	}
	h.sea.busy, h.sea.rogue = h.rng.IntN(2) == 0, h.rng.IntN(10) == 0
}

func (h *history) resize() {
	h.sea.drain()
	size := (1+h.rng.IntN(maxBlocks))*blockSize - 512*h.rng.IntN(3)
	h.sea.data = append(h.sea.data[:min(size, len(h.sea.data))], make([]byte, max(0, size-len(h.sea.data)))...)
	h.sea.forget()
}

// TestTheTargetIsOldOrNewWhateverHappens makes random runs with the power cut or
// an operation failing at random points, and looks at the target after each.
func TestTheTargetIsOldOrNewWhateverHappens(t *testing.T) {
	play(t, *sequences, func(rng *rand.Rand) world { return faultdisk.New(rng) })
}

// TestTheTargetIsOldOrNewInRealFiles does the same with files, where a run that
// is cut off loses nothing that it wrote: what SIGKILL does.
func TestTheTargetIsOldOrNewInRealFiles(t *testing.T) {
	play(t, *sequences/10, func(*rand.Rand) world { return newRealWorld(t) })
}

func play(t *testing.T, sequences int, newWorld func(*rand.Rand) world) {
	t.Helper()
	t.Logf("first seed %d", *firstSeed)
	if testing.Short() {
		sequences /= 10
	}
	var cuts, commits, failures, pending int
	for i := range sequences {
		seed := *firstSeed + uint64(i)
		rng := rand.New(rand.NewPCG(seed, 1))
		size := (1+rng.IntN(maxBlocks))*blockSize - 512*rng.IntN(3)
		h := &history{t: t, seed: seed, rng: rng, unfinished: true, sea: newSea(rng, size), world: newWorld(rng)}
		for range 2 + rng.IntN(6) {
			h.between()
			h.disturb(60)
			err := h.run()
			if err == nil {
				commits++
			} else {
				failures++
			}
			if h.restart() {
				cuts++
			}
			if h.unchecked = err != nil && rng.IntN(3) == 0; h.unchecked {
				continue // the next run finds what this one left, and may be cut off while it recovers
			}
			h.check(h.recover(err))
		}
		if h.unchecked {
			h.check(h.recover(errors.New("not looked at yet")))
		}
		pending += h.pending
	}
	if pending == 0 && sequences > 100 {
		t.Error("no run failed after its commit")
	}
	t.Logf("%d sequences: %d commits, %d failed runs, %d of them cut off", sequences, commits, failures, cuts)
}
