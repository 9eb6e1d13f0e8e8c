package pairs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"tidemark/format/state"
	"tidemark/track"
	"tidemark/transfer"
)

// Condition is how a mirror is, in one word.
type Condition string

// The conditions, the worst first. What is worse hides what is better.
const (
	Missing    Condition = "missing"    // the target, or what is known of it, is not there
	Damaged    Condition = "damaged"    // by a verify, or what is known of it is
	Pending    Condition = "pending"    // see Known
	Incomplete Condition = "incomplete" // the first copy has not ended
	Failed     Condition = "failed"     // the last run did; there is a copy
	Complete   Condition = "complete"
)

// What the next run of a mirror reads.
const (
	NextChanges = "incremental" // what changed
	NextRest    = "resume"      // the rest of the first copy, and what changed
	NextAll     = "all"
	NextUnknown = "" // it cannot be told from here
)

// Seen is how a mirror was found.
type Seen struct {
	Known
	Path      string // where it is now, or was when a run last used it
	Condition Condition
	Why       string   // in words, for every condition but Complete
	Running   *Running // the run that is updating it; nil where there is none
	Next      string   // see NextChanges
	NextWhy   string   // in words, unless Next is NextChanges
	err       error    // why nothing is known of it
}

// Mirrors tells of all mirrors that runs on this machine have made or updated, by path,
// whether they are still there or not. It changes nothing, and needs no lock.
func Mirrors(ctx context.Context, o Options) ([]Seen, error) {
	o = o.withDefaults()
	all, err := registered(o.StateDir)
	if err != nil {
		return nil, fmt.Errorf("list of mirrors: %w", err)
	}
	var found []Seen
	for _, e := range all {
		path := e.current(o.StateDir)
		if path == "" {
			found = append(found, Seen{Path: e.Path, Condition: Missing, Why: "no device is what it was"})
			continue
		}
		m, err := Look(ctx, path, o)
		if errors.Is(err, fs.ErrPermission) {
			return nil, err
		}
		if err != nil && m.Condition == "" {
			m = Seen{Path: path, Condition: Missing, Why: err.Error()}
		}
		found = append(found, m)
	}
	return found, ctx.Err()
}

// Look tells how the mirror at path is, also while a run is using it. It changes nothing.
// Where nothing is known of one the error is that of Status, and Condition tells as well:
// Missing or Damaged.
func Look(ctx context.Context, path string, o Options) (Seen, error) {
	o = o.withDefaults()
	o.Progress = func(transfer.Event) {}
	t, err := findTarget(path, o.StateDir)
	if err != nil {
		return Seen{}, err
	}
	m := Seen{Path: path}
	if m.Known, m.err = knownIn(t.folder, path); m.err == nil {
		if m.Running, m.err = runningOn(o.Track.RunDir, t.folder); errors.Is(m.err, fs.ErrPermission) {
			m.err = nil // whether a run is in progress is told to root only
		}
	}
	if m.judge(t); m.err != nil {
		return m, m.err
	}
	if m.Running == nil && m.Condition != Missing {
		m.foresee(ctx, o)
	}
	return m, ctx.Err()
}

// judge finds the condition.
func (m *Seen) judge(t *target) {
	last := state.Run{Outcome: "ok"}
	if n := len(m.Runs); n > 0 {
		last = m.Runs[n-1]
	}
	switch {
	case errors.Is(m.err, ErrNoMirror), errors.Is(m.err, fs.ErrNotExist):
		m.Condition, m.Why = Missing, "what is known of it is gone, or not mounted: "+t.folder
	case errors.Is(m.err, fs.ErrPermission):
		m.Condition = "" // nothing is wrong with it
	case m.err != nil:
		m.Condition, m.Why = Damaged, m.err.Error()
	case !t.exists:
		m.Condition, m.Why = Missing, "the image is gone: the next run copies everything"
	case m.Damage != nil:
		m.Condition = Damaged
		m.Why = fmt.Sprintf("verify found %s that are not what they should be, on %s; the next run repairs that", sized(m.Damage.Bytes), m.Damage.Time.Local().Format(timeFormat))
	case m.Known.Pending:
		m.Condition, m.Why = Pending, `an update is committed and not finished; "tidemark recover" or the next run does that`
	case !m.State.Complete && m.Running != nil:
		m.Condition, m.Why = Incomplete, "its first copy is being made"
	case !m.State.Complete:
		m.Condition, m.Why = Incomplete, fmt.Sprintf("%s of %s copied; run mirror again", sized(m.Copied), sized(m.Size))
	case last.Outcome != "ok" && !strings.HasPrefix(last.Outcome, "pending: "): // it was finished
		m.Condition, m.Why = Failed, "the last run failed: "+last.Outcome
	default:
		m.Condition = Complete
	}
}

// foresee finds out what the next run will read, as a dry run does.
func (m *Seen) foresee(ctx context.Context, o Options) {
	m.Next, m.NextWhy = NextAll, ""
	if m.Mark == "" {
		m.NextWhy = "no mark: nothing tracked the source"
		return
	}
	err := vouched(ctx, m.State, o)
	lost := (*track.LostError)(nil)
	switch {
	case errors.As(err, &lost):
		m.NextWhy = "mark lost: " + lost.Reason
	case err != nil:
		m.Next, m.NextWhy = NextUnknown, err.Error()
	case !m.State.Complete:
		m.Next, m.NextWhy = NextRest, "the first copy has not ended"
	default:
		m.Next = NextChanges
	}
}

// vouched asks the tracker of a mirror's source whether it can tell what changed since the
// mark. The error is a track.LostError where it cannot.
func vouched(ctx context.Context, st state.State, o Options) (err error) {
	src, err := openSource(st.Source.Path)
	if err != nil {
		return err
	}
	s := &session{o: o, dry: true}
	s.later(src.Close)
	defer func() { err = errors.Join(err, s.close()) }()
	if !sameOrigin(st.Source, src.origin()) {
		return fmt.Errorf("%w: %s is another disk now", ErrSource, st.Source.Path)
	}
	tracker, err := s.tracker(ctx, src, track.Mark(st.Mark))
	if err != nil {
		return err
	}
	s.later(tracker.Close)
	if n, ok := tracker.(notStarted); ok {
		return &track.LostError{Reason: n.why}
	}
	if src.Size() != st.Size {
		return &track.LostError{Reason: fmt.Sprintf("the source had %s, and has %s", sized(st.Size), sized(src.Size()))}
	}
	return tracker.Vouch(ctx, track.Mark(st.Mark))
}
