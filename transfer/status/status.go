// Package status tells how mirrors are, and what their next runs will read.
//
// For most uses, call [Mirrors], or [Look] with the path of one. The package changes nothing,
// and needs no lock. Functions may be called by several goroutines at once.
package status

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"tidemark/block"
	"tidemark/format/state"
	"tidemark/track"
	"tidemark/track/bpf"
	"tidemark/track/thin"
	"tidemark/transfer/origin"
	"tidemark/transfer/running"
	"tidemark/transfer/target"
	"tidemark/transfer/tracking"
	"tidemark/view"
	"tidemark/words"
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
	target.Known
	Path      string // where it is now, or was when a run last used it
	Condition Condition
	Why       string       // in words, for every condition but Complete
	Running   *running.Run // the run that is updating it; nil where there is none
	Next      string       // see NextChanges
	NextWhy   string       // in words, unless Next is NextChanges
	err       error        // why nothing is known of it
}

// Options say where to look. The zero value works.
type Options struct {
	StateDir string      // target.DefaultStateDir when empty
	Track    bpf.Options // where sources are tracked
}

// Mirrors tells of all mirrors that runs on this machine have made or updated, by path,
// whether they are still there or not. It changes nothing, and needs no lock.
func Mirrors(ctx context.Context, o Options) ([]Seen, error) {
	all, err := target.Registered(o.StateDir)
	if err != nil {
		return nil, fmt.Errorf("list of mirrors: %w", err)
	}
	var found []Seen
	for _, e := range all {
		path := e.Current(o.StateDir)
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
	t, err := target.Find(path, o.StateDir)
	if err != nil {
		return Seen{}, err
	}
	m := Seen{Path: path}
	if m.Known, m.err = target.KnownIn(t.Folder, path); m.err == nil {
		if m.Running, m.err = running.On(o.Track.RunDir, t.Folder); errors.Is(m.err, fs.ErrPermission) {
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
func (m *Seen) judge(t *target.Target) {
	last := state.Run{Outcome: "ok"}
	if n := len(m.Runs); n > 0 {
		last = m.Runs[n-1]
	}
	switch {
	case errors.Is(m.err, target.ErrNoMirror), errors.Is(m.err, fs.ErrNotExist):
		m.Condition, m.Why = Missing, "what is known of it is gone, or not mounted: "+t.Folder
	case errors.Is(m.err, fs.ErrPermission):
		m.Condition = "" // nothing is wrong with it
	case m.err != nil:
		m.Condition, m.Why = Damaged, m.err.Error()
	case !t.Exists:
		m.Condition, m.Why = Missing, "the image is gone: the next run copies everything"
	case m.Damage != nil:
		m.Condition = Damaged
		m.Why = fmt.Sprintf("verify found %s that are not what they should be, on %s; the next run repairs that, or is refused where the copy was used (mounted, formatted)", words.Size(m.Damage.Bytes), words.Time(m.Damage.Time))
	case m.Known.Pending:
		m.Condition, m.Why = Pending, `an update is committed and not finished; "tidemark recover" or the next run does that`
	case !m.State.Complete && m.Running != nil:
		m.Condition, m.Why = Incomplete, "its first copy is being made"
	case !m.State.Complete:
		m.Condition, m.Why = Incomplete, fmt.Sprintf("%s of %s copied; run mirror again", words.Size(m.Copied), words.Size(m.Size))
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
	src, err := origin.Open(st.Source.Path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	if !origin.Same(st.Source, origin.OfDevice(src)) {
		return fmt.Errorf("%w: %s is another disk now", origin.ErrSource, st.Source.Path)
	}
	c := tracking.Chooser{Options: tracking.Options{Track: o.Track, StateDir: o.StateDir, Dry: true, Note: func(string, ...any) {}}}
	tracker, closeAll, err := trackerOf(ctx, c, src, track.Mark(st.Mark))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	if err := tracker.Vouch(ctx, track.Mark(st.Mark)); err != nil {
		return err
	}
	if src.Size() != st.Size {
		return &track.LostError{Reason: fmt.Sprintf("the source had %s, and has %s", words.Size(st.Size), words.Size(src.Size()))}
	}
	return nil
}

// trackerOf opens the tracker of a mirror's mark, and returns what closes it.
func trackerOf(ctx context.Context, c tracking.Chooser, src *block.Device, stored track.Mark) (track.Tracker, func() error, error) {
	if stored.Kind() != thin.Kind {
		t, _, err := c.Open(ctx, src, stored)
		if err != nil {
			return nil, nil, err
		}
		return t, t.Close, nil
	}
	c.Tracker = thin.Kind
	g, err := c.Thin(ctx, []thin.Source{{Device: src}}, []track.Mark{stored}, "", view.Hooks{})
	if err != nil {
		return nil, nil, err
	}
	return g.Tracker(0), g.Close, nil
}
