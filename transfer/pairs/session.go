package pairs

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/format/state"
	"tidemark/snapshot"
	"tidemark/track"
	"tidemark/track/thin"
	"tidemark/transfer"
	"tidemark/transfer/mirror"
	"tidemark/transfer/names"
	"tidemark/transfer/origin"
	"tidemark/transfer/restore"
	"tidemark/transfer/running"
	"tidemark/transfer/target"
	"tidemark/transfer/tracking"
	"tidemark/view"
)

// session is all that is open during one call.
type session struct {
	o       Options
	dry     bool // nothing is started, made or written
	ends    []*ends
	waiting []string // sources that have to be settled first
	choose  tracking.Chooser
	thin    *thin.Group    // nil: trackers and view are chosen apart
	apart   view.Provider  // what a freeze gives way to, or nil
	closers []func() error // to be called in reverse
}

// ends are the source and the target of one pair.
type ends struct {
	source    *block.Device
	untracked string // why its changes are not tracked, "" where they are
	target    *goal
}

func newSession(o Options, dry bool) *session {
	s := &session{o: o.withDefaults(), dry: dry}
	s.choose.Options = tracking.Options{
		Track: s.o.Track, Tracker: s.o.Tracker, StateDir: s.o.StateDir, MaxFreeze: s.o.MaxFreeze, Dry: dry,
		Note: func(format string, args ...any) { s.o.note(format, args...) },
	}
	return s
}

func (s *session) later(f func() error) { s.closers = append(s.closers, f) }

func (s *session) close() error {
	var errs []error
	for _, f := range slices.Backward(s.closers) {
		errs = append(errs, f())
	}
	s.closers = nil
	return errors.Join(errs...)
}

// end closes everything and returns the error of a run that ended with err. The copies of
// a run without error are complete, whatever closing says: that is told.
func (s *session) end(err error, tell func(string)) error {
	var undone error
	if err != nil {
		for _, e := range s.ends {
			undone = errors.Join(undone, e.target.undo())
		}
	}
	closeErr := errors.Join(undone, s.close())
	if err == nil && closeErr != nil {
		tell(fmt.Sprintf("the copy is complete, but: %v", closeErr))
		return nil
	}
	return errors.Join(err, closeErr)
}

// look opens the sources, judges the targets and chooses the view. Until it has returned
// nothing has been made or started, and nothing has been written to a target. A source that
// is a mirror with an update that waits is then brought to its end, and all looked at anew.
func (s *session) look(ctx context.Context, pairs []Pair) (view.Provider, error) {
	err := s.find(ctx, pairs)
	if waiting := s.waiting; err == nil && len(waiting) > 0 {
		err = s.close()
		s.ends, s.waiting = nil, nil
		for _, path := range waiting {
			if err == nil {
				_, err = target.Settle(ctx, path, s.o.StateDir, true, s.o.note)
			}
		}
		if err == nil {
			err = s.find(ctx, pairs)
		}
		if err == nil && len(s.waiting) > 0 {
			err = fmt.Errorf("%s: %w, again", s.waiting[0], target.ErrPending)
		}
	}
	if err != nil {
		return nil, err
	}
	return s.view(ctx)
}

// find opens the sources and judges the targets.
func (s *session) find(ctx context.Context, pairs []Pair) (err error) {
	var sources []*block.Device
	for _, p := range pairs {
		src, err := s.source(ctx, p.Source)
		if err != nil {
			return err
		}
		sources = append(sources, src)
	}
	if pairs, sources, err = s.whole(ctx, pairs, sources); err != nil {
		return err
	}
	for i, p := range pairs {
		path, err := names.Noted(ctx, p.Target, s.o.note)
		if err != nil {
			return err
		}
		found, err := target.Find(path, s.o.StateDir)
		if err != nil {
			return fmt.Errorf("target: %w", err)
		}
		t := &goal{Target: found}
		s.later(t.close)
		for _, other := range s.ends {
			if other.target.Folder == t.Folder {
				return fmt.Errorf("target: %s: %w: it is the target of two pairs", p.Target, target.ErrRefused)
			}
		}
		s.ends = append(s.ends, &ends{source: sources[i], target: t})
		if err := s.judge(s.ends[i], sources); err != nil {
			return err
		}
	}
	return nil
}

// source opens the source of that name. It is refused when it is no copy of anything, and
// noted when an update waits for it.
func (s *session) source(ctx context.Context, name string) (*block.Device, error) {
	path, err := names.Source(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", origin.ErrSource, err)
	}
	src, err := origin.Open(path)
	if err != nil {
		return nil, err
	}
	s.later(src.Close)
	if path != name {
		s.o.note("%s is %s", name, path)
	}
	if err := restore.RefuseHalf(src.Path(), s.o.StateDir); err != nil {
		return nil, err
	}
	switch _, err := target.Settle(ctx, src.Path(), s.o.StateDir, false, s.o.note); {
	case errors.Is(err, target.ErrPending) && !s.dry:
		s.waiting = append(s.waiting, src.Path())
	case err != nil:
		return nil, fmt.Errorf("source: %w", err)
	}
	return src, nil
}

// judge refuses a target that must not be written to, and otherwise finds out what it
// is to its source.
func (s *session) judge(e *ends, sources []*block.Device) error {
	t := e.target
	if err := t.RefuseUsed(sources...); err != nil {
		return err
	}
	if !s.dry {
		if err := t.Lock(false); err != nil {
			return err
		}
	}
	if err := t.RefuseOpeners(); err != nil {
		return err
	}
	if !s.dry {
		return t.rejudge(e.source, s.o)
	}
	if err := t.read(e.source); err != nil {
		return err
	}
	return t.judge(e.source, s.o)
}

// view chooses what makes the sources stand still, and finds out which targets
// cannot be written to meanwhile.
func (s *session) view(ctx context.Context) (view.Provider, error) {
	var sources []*block.Device
	for _, e := range s.ends {
		sources = append(sources, e.source)
	}
	provider, why, err := s.provider(ctx, sources)
	if err != nil {
		return nil, err
	}
	s.o.note("view: %s", why)
	if traits := provider.Traits(); !traits.Stops && !traits.Apart {
		return provider, nil
	}
	for _, e := range s.ends {
		if err := e.target.place(sources, s.o); err != nil {
			return nil, err
		}
	}
	return provider, nil
}

// provider chooses the provider of the view of all sources, and says why.
func (s *session) provider(ctx context.Context, sources []*block.Device) (_ view.Provider, why string, err error) {
	var volumes []thin.Source
	var stored []track.Mark
	for _, e := range s.ends {
		volumes = append(volumes, thin.Source{Device: e.source, Owner: e.target.Owner()})
		stored = append(stored, track.Mark(e.target.state.Mark))
	}
	if s.thin, err = s.choose.Thin(ctx, volumes, stored, s.o.View, s.o.Hooks); err != nil {
		return nil, "", err
	}
	if s.thin != nil {
		s.later(s.thin.Close)
		return s.thin.View(), "thin: a snapshot in the pool", nil
	}
	vo := view.Options{Sources: sources, Hooks: s.o.Hooks, MaxFreeze: s.o.MaxFreeze}
	if s.o.ForceFreeze {
		vo.MaxFreeze = max(s.o.MaxFreeze, ForcedFreeze)
	}
	o := snapshot.Options{StateDir: s.o.StateDir, Track: s.o.Track}
	so := snapshot.ViewOptions{Sources: sources, Hooks: s.o.Hooks, MaxFreeze: vo.MaxFreeze}
	if s.o.View == snapshot.Kind {
		return snapshot.View(o, so), "dm: a snapshot for the time of the run", snapshot.Judge(o, so)
	}
	p, why, err := view.Choose(ctx, s.o.View, vo)
	if automatic := s.o.View == "" || s.o.View == "auto"; err == nil && automatic && p.Traits().Stops && snapshot.Judge(o, so) == nil {
		s.apart = snapshot.View(o, so)
	}
	return p, why, err
}

// release removes the snapshots in pools that earlier runs have kept, when this one has gone by
// something else.
func (s *session) release(ctx context.Context) {
	for _, e := range s.ends {
		if s.thin == nil {
			s.choose.ReleaseThin(ctx, e.target.Owner())
		}
	}
}

// tracker opens the tracker of a source, by the mark that is stored with its mirror.
func (s *session) tracker(ctx context.Context, e *ends) (t track.Tracker, err error) {
	if s.thin != nil {
		return s.thin.Tracker(slices.Index(s.ends, e)), nil
	}
	t, e.untracked, err = s.choose.Open(ctx, e.source, track.Mark(e.target.state.Mark))
	if err == nil {
		s.later(t.Close)
	}
	return t, err
}

// open opens the tracker and the target of one pair.
func (s *session) open(ctx context.Context, e *ends) (*transfer.Pair, error) {
	tracker, err := s.tracker(ctx, e)
	if err != nil {
		return nil, err
	}
	sink, err := e.target.open(e.source, tracker.Granularity(), s.o)
	if err != nil {
		return nil, err
	}
	if err := e.target.Register(); err != nil {
		s.o.note("%s: \"tidemark status\" will not list it: %v", e.target.Path, err)
	}
	return e.pair(tracker, sink), nil
}

func (e *ends) pair(tracker track.Tracker, sink transfer.Sink) *transfer.Pair {
	return &transfer.Pair{
		Name: e.source.Path(), Target: e.target.Name, Source: e.source, Tracker: tracker, Sink: sink, Untracked: e.untracked,
		Owner: e.target.Owner(), Freezes: e.target.freezes,
	}
}

// plan is open without its effects.
func (s *session) plan(ctx context.Context, e *ends) (*transfer.Pair, error) {
	tracker, err := s.tracker(ctx, e)
	if err != nil {
		return nil, err
	}
	if err := e.target.foretell(e.source, s.o); err != nil {
		return nil, err
	}
	return e.pair(tracker, plannedSink{e.target.have(tracker.Granularity())}), nil
}

// plannedSink is a sink of which nothing but what it has is asked.
type plannedSink struct{ have transfer.Have }

func (p plannedSink) Have() transfer.Have { return p.have }

func (p plannedSink) Begin(context.Context, int64, func(transfer.Event)) (transfer.Txn, extent.Set, error) {
	return nil, extent.Set{}, errors.New("pairs: a plan was run")
}

// have tells what open would find, or make, at the target.
func (t *goal) have(granularity int64) transfer.Have {
	if t.is.begins() {
		return transfer.Have{Block: blockSize(granularity), Compared: !t.empty()}
	}
	return (&mirror.Sink{State: t.state, Other: t.is == otherOrigin}).Have()
}

// blockSize is what a new mirror keeps a checksum of: a block of the tracker, or
// where that is no power of two the largest part of it that is one, within what the
// format allows.
func blockSize(granularity int64) int64 {
	return min(max(granularity&-granularity, state.MinBlock), state.MaxBlock)
}

// publish has the run told to other processes, as far as the run folder can be written: a
// copy is worth more than news of it.
func (s *session) publish() {
	p := running.New(s.o.Progress)
	s.later(func() error {
		if err := p.Close(); err != nil {
			s.o.note("\"tidemark status\" could not be told of this run: %v", err)
		}
		return nil
	})
	for _, e := range s.ends {
		if p.Add(s.o.Track.RunDir, e.target.Folder) != nil {
			return
		}
	}
	s.o.Progress = p.Tell
	p.Tell(transfer.Event{Phase: "begin"})
}
