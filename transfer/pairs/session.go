package pairs

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/snapshot"
	"tidemark/track"
	"tidemark/track/thin"
	"tidemark/transfer"
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
	dry     bool   // nothing is started, made or written
	vault   *Vault // that gets points; nil: targets are mirrors
	instant string // common to the points of a run
	ends    []*ends
	waiting []string // sources that have to be settled first
	choose  tracking.Chooser
	thin    *thin.Group    // nil: trackers and view are chosen apart
	apart   view.Provider  // what a freeze gives way to, or nil
	closers []func() error // to be called in reverse
}

// ends are the source of one pair, and what it is copied to.
type ends struct {
	source    *block.Device
	untracked string // why its changes are not tracked, "" where they are
	to        receiver
}

// receiver is what a source is copied to in one run: a mirror, or a disk of a vault.
type receiver interface {
	// id is another one for each receiver of a run.
	id() string
	name() string
	// owner is under which a tracker keeps the mark of the copy.
	owner() string
	// mark is that of the copy that is there, "" where there is none.
	mark() track.Mark
	// judge finds out what there is, and refuses what must not be written to. It writes
	// nothing.
	judge(s *session, src *block.Device, sources []*block.Device) error
	// place refuses what cannot be written to while the sources stand still, and whose every
	// copy would change what it copies.
	place(sources []*block.Device, o Options) error
	// freezes reports whether some of it cannot be written to while the sources stand still.
	freezes() bool
	// open makes what is missing, and returns the sink.
	open(ctx context.Context, src *block.Device, granularity int64, o Options) (transfer.Sink, error)
	// foretell tells what a run would do, and what open would find. It only reads.
	foretell(src *block.Device, granularity int64, o Options) (transfer.Have, error)
	// undo takes back what a run that failed has made.
	undo() error
	close() error
}

func newSession(o Options, dry bool) *session {
	s := &session{o: o.withDefaults(), dry: dry}
	s.choose.Options = tracking.Options{
		Track: s.o.Track, Tracker: s.o.Tracker, StateDir: s.o.StateDir, MaxFreeze: s.o.MaxFreeze, Dry: dry,
		Note: func(format string, args ...any) { s.o.note(format, args...) },
	}
	return s
}

// run copies, and returns a report for each pair unless it failed before it began.
func (s *session) run(ctx context.Context, pairs []Pair) (reports []transfer.Report, err error) {
	defer func() { err = s.end(err, func(text string) { s.o.note("%s", text) }) }()
	provider, err := s.look(ctx, pairs)
	if err != nil {
		return nil, err
	}
	var ready []*transfer.Pair
	for _, e := range s.ends {
		p, err := s.open(ctx, e)
		if err != nil {
			return nil, err
		}
		ready = append(ready, p)
	}
	s.publish()
	reports, err = transfer.Run(ctx, ready, transfer.Options{
		View: provider, Apart: s.apart, MaxFreeze: s.o.MaxFreeze, ForceFreeze: s.o.ForceFreeze,
		Limit: transfer.NewLimiter(s.o.BytesPerSec), Progress: s.o.Progress, Frozen: s.choose.Frozen,
	})
	s.points(reports)
	if err == nil {
		s.release(ctx)
		err = s.stillWhole()
	}
	return reports, err
}

// foretell decides as run does, and tells what that would read.
func (s *session) foretell(ctx context.Context, pairs []Pair) (reports []transfer.Report, err error) {
	defer func() { err = errors.Join(err, s.close()) }()
	provider, err := s.look(ctx, pairs)
	if err != nil {
		return nil, err
	}
	var planned []*transfer.Pair
	for _, e := range s.ends {
		p, err := s.plan(ctx, e)
		if err != nil {
			return nil, err
		}
		planned = append(planned, p)
	}
	reports, err = transfer.Plan(ctx, planned, provider)
	s.points(reports)
	return reports, err
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
			undone = errors.Join(undone, e.to.undo())
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
		to, err := s.receiver(ctx, p, sources[i])
		if err != nil {
			return err
		}
		s.later(to.close)
		for _, other := range s.ends {
			if other.to.id() == to.id() {
				return fmt.Errorf("target: %s: %w: it is the target of two pairs", to.name(), target.ErrRefused)
			}
		}
		s.ends = append(s.ends, &ends{source: sources[i], to: to})
		if err := to.judge(s, sources[i], sources); err != nil {
			return err
		}
	}
	return nil
}

// receiver finds what a source is copied to.
func (s *session) receiver(ctx context.Context, p Pair, src *block.Device) (receiver, error) {
	if s.vault != nil {
		return s.disk(ctx, p.Target, src)
	}
	path, err := names.Noted(ctx, p.Target, s.o.note)
	if err != nil {
		return nil, err
	}
	found, err := target.Find(path, s.o.StateDir)
	if err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	return &goal{Target: found}, nil
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
		if err := e.to.place(sources, s.o); err != nil {
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
		volumes = append(volumes, thin.Source{Device: e.source, Owner: e.to.owner()})
		stored = append(stored, e.to.mark())
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
			s.choose.ReleaseThin(ctx, e.to.owner())
		}
	}
}

// tracker opens the tracker of a source, by the mark that is stored with its mirror.
func (s *session) tracker(ctx context.Context, e *ends) (t track.Tracker, err error) {
	if s.thin != nil {
		return s.thin.Tracker(slices.Index(s.ends, e)), nil
	}
	t, err = s.imageTracker(ctx, e.source)
	if err == nil && t == nil {
		t, e.untracked, err = s.choose.Open(ctx, e.source, e.to.mark())
	}
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
	sink, err := e.to.open(ctx, e.source, tracker.Granularity(), s.o)
	if err != nil {
		return nil, err
	}
	return e.pair(tracker, sink), nil
}

func (e *ends) pair(tracker track.Tracker, sink transfer.Sink) *transfer.Pair {
	return &transfer.Pair{
		Name: e.source.Path(), Target: e.to.name(), Source: e.source, Tracker: tracker, Sink: sink, Untracked: e.untracked,
		Owner: e.to.owner(), Freezes: e.to.freezes(),
	}
}

// plan is open without its effects.
func (s *session) plan(ctx context.Context, e *ends) (*transfer.Pair, error) {
	tracker, err := s.tracker(ctx, e)
	if err != nil {
		return nil, err
	}
	have, err := e.to.foretell(e.source, tracker.Granularity(), s.o)
	if err != nil {
		return nil, err
	}
	return e.pair(tracker, plannedSink{have}), nil
}

// plannedSink is a sink of which nothing but what it has is asked.
type plannedSink struct{ have transfer.Have }

func (p plannedSink) Have() transfer.Have { return p.have }

func (p plannedSink) Begin(context.Context, int64, func(transfer.Event)) (transfer.Txn, extent.Set, error) {
	return nil, extent.Set{}, errors.New("pairs: a plan was run")
}

// publish has the run told to other processes, as far as the run folder can be written: a
// copy is worth more than news of it.
func (s *session) publish() {
	if s.vault != nil {
		s.told()
		return
	}
	p := running.New(s.o.Progress)
	s.later(func() error {
		if err := p.Close(); err != nil {
			s.o.note("\"tidemark status\" could not be told of this run: %v", err)
		}
		return nil
	})
	for _, e := range s.ends {
		if t, ok := e.to.(*goal); ok && p.Add(s.o.Track.RunDir, t.Folder) != nil {
			return
		}
	}
	s.o.Progress = p.Tell
	p.Tell(transfer.Event{Phase: "begin"})
}
