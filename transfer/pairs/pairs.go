// Package pairs makes mirrors of sources that are named by path.
//
// It owns everything around package transfer that takes a path: it opens sources
// and targets, chooses tracker and view, finds the folder where a mirror's files
// lie, and refuses targets whose content must not be lost (ErrRefused): one that
// is in use, is the source or holds it, or is a device with a filesystem that is
// no mirror. Nothing has been written to a target that is refused.
//
// The files beside an image DST lie in the folder DST.tidemark; those of a device
// in a folder of StateDir that is named after the device itself, not after its
// path, so that a disk that comes up under another name keeps its mirror.
//
// A mirror is locked while it is worked on; functions on different mirrors may
// run at the same time. The program's main must call fsfreeze.IsWatchdog first.
package pairs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"tidemark/block"
	"tidemark/track"
	"tidemark/transfer"
	"tidemark/transfer/mirror"
	"tidemark/view"
)

var (
	// ErrRefused says that a target holds, or may hold, what must not be lost.
	ErrRefused = errors.New("refused")
	// ErrInUse, ErrTooSmall and ErrHoldsOther wrap ErrRefused, and say why. Only
	// what the last one refuses is done with Options.Overwrite.
	ErrInUse      = fmt.Errorf("%w: it is in use", ErrRefused)
	ErrTooSmall   = fmt.Errorf("%w: it is too small", ErrRefused)
	ErrHoldsOther = fmt.Errorf("%w: it holds something else", ErrRefused)
	// ErrSource says that a source cannot be opened.
	ErrSource = errors.New("source")
	// ErrNoMirror says that nothing is known of a target.
	ErrNoMirror = errors.New("no mirror")
	// ErrPending says that a committed update has not reached a target yet.
	ErrPending = errors.New("an update that was committed waits to be finished")
)

// DefaultStateDir is where the files beside targets that are devices lie.
const DefaultStateDir = "/var/lib/tidemark"

// ForcedFreeze is how long a freeze lasts at most when it is forced: even then a
// target that never answers must not hold a filesystem for ever.
const ForcedFreeze = 10 * time.Minute

// Pair names a source, a block device or image file, and its target, an image
// file, which is made if need be, or a block device.
type Pair struct{ Source, Target string }

// Options say how to mirror. The zero value works.
type Options struct {
	StateDir string        // DefaultStateDir when empty
	Track    track.Options // where and how to track
	Tracker  string        // "auto" (or ""), "bpf", "era" or "scan"
	View     string        // "auto" (or ""), "freeze" or "offline"
	Hooks    view.Hooks
	// MaxFreeze bounds the frozen time; 0 stands for transfer.DefaultMaxFreeze.
	// ForceFreeze goes on when it is over.
	MaxFreeze   time.Duration
	ForceFreeze bool
	BytesPerSec int64 // read while a source is in use; 0 is no limit
	Overwrite   bool  // what a target holds or is the mirror of, and what is known of it
	Progress    func(transfer.Event)
}

func (o Options) withDefaults() Options {
	if o.StateDir == "" {
		o.StateDir = DefaultStateDir
	}
	if o.MaxFreeze == 0 {
		o.MaxFreeze = transfer.DefaultMaxFreeze
	}
	if o.Progress == nil {
		o.Progress = func(transfer.Event) {}
	}
	return o
}

func (o Options) note(format string, args ...any) {
	o.Progress(transfer.Event{Text: fmt.Sprintf(format, args...)})
}

// Mirror brings the targets of all pairs to one instant of their sources. There
// is a report for each pair unless the run failed before it began.
func Mirror(ctx context.Context, pairs []Pair, o Options) (reports []transfer.Report, err error) {
	o = o.withDefaults()
	s := &session{o: o}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.find(pairs); err != nil {
		return nil, err
	}
	provider, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	for i := range pairs {
		if err := s.open(ctx, i); err != nil {
			return nil, err
		}
	}
	return transfer.Run(ctx, s.ready, transfer.Options{
		View: provider, MaxFreeze: o.MaxFreeze, ForceFreeze: o.ForceFreeze,
		Limit: limiter(o.BytesPerSec), Progress: o.Progress, Frozen: s.frozen,
	})
}

// limitBurst is what may be read at once under a limit, in bytes.
const limitBurst = 1 << 20

func limiter(bytesPerSec int64) *rate.Limiter {
	if bytesPerSec == 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(bytesPerSec), limitBurst)
}

// session is all that is open during one call.
type session struct {
	o       Options
	pairs   []Pair
	sources []*source
	targets []*target
	ready   []*transfer.Pair
	eras    map[string]*track.Era // by disk: a device answers one at a time
	frozen  time.Duration         // that starting to track has cost the sources' users
	closers []func() error        // to be called in reverse
}

func (s *session) later(f func() error) { s.closers = append(s.closers, f) }

func (s *session) close() error {
	var errs []error
	for i := len(s.closers) - 1; i >= 0; i-- {
		errs = append(errs, s.closers[i]())
	}
	return errors.Join(errs...)
}

// find opens the sources and judges the targets, before anything is made or
// started.
func (s *session) find(pairs []Pair) error {
	s.pairs = pairs
	for _, p := range pairs {
		src, err := openSource(p.Source)
		if err != nil {
			return err
		}
		s.sources = append(s.sources, src)
		s.later(src.Close)
	}
	for i, p := range pairs {
		t, err := findTarget(p.Target, s.o.StateDir)
		if err != nil {
			return err
		}
		for _, other := range s.targets {
			if other.folder == t.folder {
				return fmt.Errorf("target: %s: %w: it is the target of two pairs", p.Target, ErrRefused)
			}
		}
		if err := t.refuse(s.sources[i], s.sources, s.o.Overwrite); err != nil {
			return err
		}
		s.targets = append(s.targets, t)
	}
	return nil
}

// open opens the tracker and the target of pair i.
func (s *session) open(ctx context.Context, i int) error {
	p, src, t := s.pairs[i], s.sources[i], s.targets[i]
	tracker, err := s.tracker(ctx, src, t)
	if err != nil {
		return err
	}
	s.later(tracker.Close)
	s.later(t.close)
	if err := t.open(src, tracker.Granularity(), s.o); err != nil {
		return err
	}
	s.ready = append(s.ready, &transfer.Pair{
		Name: p.Source, Target: p.Target, Source: src, Tracker: tracker, Owner: t.owner(), Freezes: t.freezes,
		Sink: &mirror.Sink{Store: t.store, Name: p.Target, Origin: src.origin(), Other: t.stranger},
	})
	return nil
}

// view chooses what makes the sources stand still, and finds out which targets
// cannot be written to meanwhile: those that lie on the sources themselves. Nothing
// has been made or started yet.
func (s *session) view(ctx context.Context) (view.Provider, error) {
	sources := s.devices()
	vo := view.Options{Sources: sources, Hooks: s.o.Hooks, MaxFreeze: s.o.MaxFreeze}
	if s.o.ForceFreeze {
		vo.MaxFreeze = max(s.o.MaxFreeze, ForcedFreeze)
	}
	provider, why, err := view.Choose(ctx, s.o.View, vo)
	if err != nil {
		return nil, err
	}
	s.o.note("view: %s", why)
	if !provider.Traits().Stops {
		return provider, nil
	}
	return provider, s.place(sources)
}

// place finds out which targets, or the folders beside them, lie on a filesystem of
// the sources, and says what that means.
func (s *session) place(sources []*block.Device) error {
	for _, t := range s.targets {
		covered, err := view.Covered(sources, t.path, t.folder)
		if err != nil {
			return err
		}
		switch t.freezes = len(covered) > 0; {
		case slices.Contains(covered, t.path):
			s.o.note("%s: it lies on a filesystem of the source: each run changes what it copies; keep it on another disk", t.path)
		case t.freezes:
			s.o.note("%s: what is kept beside it, in %s, lies on a filesystem of the source: each run changes what it copies; give a folder on another disk with --state-dir", t.path, t.folder)
		}
	}
	return nil
}

// devices returns the open sources.
func (s *session) devices() []*block.Device {
	var all []*block.Device
	for _, src := range s.sources {
		all = append(all, src.Device)
	}
	return all
}

// blockSize is what a new mirror keeps a checksum of: a block of the tracker, or
// where that is no power of two the largest part of it that is one, within what the
// format allows.
func blockSize(granularity int64) int64 {
	return min(max(granularity&-granularity, minBlock), maxBlock)
}

// openSource opens a source for reading, past the page cache.
func openSource(path string) (*source, error) {
	d, err := block.Open(path, block.Options{Direct: true})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSource, err)
	}
	src := &source{Device: d}
	if !d.IsDevice() {
		return src, nil
	}
	if src.id, err = block.Identify(path); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrSource, err), d.Close())
	}
	return src, nil
}
