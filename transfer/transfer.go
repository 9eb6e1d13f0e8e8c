// Package transfer brings mirrors up to date: it asks the tracker what changed,
// reads it from the source, checks it, and hands it to the mirror.
//
// Run is the whole of it, for one pair of source and mirror or for several that
// share one instant. It copies what changed while the source is in use, again
// and again until little is left; then the view makes the source stand still,
// the trackers' epochs are closed, the rest is copied, and the mirrors commit
// with the mark of exactly that moment. Everything that could make that untrue
// (a view that broke, a write while it was held, a tracker that cannot vouch for
// its answer) ends the run with an error and the mirrors as they were.
//
// The package writes nothing to the source. Run must not be called twice at once
// with the same pair.
package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/time/rate"

	"tidemark/extent"
	"tidemark/format/sidecar"
	"tidemark/track"
	"tidemark/transfer/mirror"
	"tidemark/view"
)

var (
	// ErrNotConverging says that the source is written to faster than it can be
	// copied within the frozen time that Options allow.
	ErrNotConverging = errors.New("the rest does not get small enough to be copied within the allowed frozen time")
	// ErrWrittenWhileHeld says that the source was written to while the view was
	// held, so that there was no instant to copy.
	ErrWrittenWhileHeld = errors.New("the source was written to while it should have stood still")
	// ErrResized says that the source changed its size during the run.
	ErrResized = errors.New("the source changed its size during the run")
)

// Source is what is read; block.Device is one.
type Source interface {
	io.ReaderAt
	Size() int64                              // bytes, when it was opened
	CurrentSize() (int64, error)              // bytes, now
	Data(e extent.Extent) (extent.Set, error) // the parts of e that are not holes
}

// Pair is one source and its mirror.
type Pair struct {
	Name    string // of the source, for messages
	Target  string // name of the mirror, for messages and the report
	Source  Source
	Tracker track.Tracker
	Store   *mirror.Store  // Exists must hold: Init has been called if need be
	Origin  sidecar.Source // what to remember of the source
	Owner   string         // under which the tracker keeps the mirror's mark
	// Blank says that Store was made just now, over a target that reads as
	// zeros.
	Blank bool
	// Stranger says that Store is a complete mirror of another source: nothing it
	// remembers but the content of the target is of use.
	Stranger bool
	// Freezes says that the target or its folder lies on a filesystem that
	// the view freezes: nothing may be written to it while the view is held, and
	// what is written to it changes the source, so that it is copied as seldom as
	// can be.
	Freezes bool
}

// Options say how to run. The zero value of each field but View is usable.
type Options struct {
	View view.Provider
	// MaxFreeze is the longest time that the view may be held while the source
	// is in use; 0 stands for DefaultMaxFreeze.
	MaxFreeze time.Duration
	// ForceFreeze holds the view for as long as it takes.
	ForceFreeze bool
	// Unheld says that holding the view stops nobody (an offline source), so
	// that MaxFreeze does not apply.
	Unheld bool
	// Frozen is for how long the sources were frozen before the run, for its sake;
	// reports add it.
	Frozen time.Duration
	// Limit bounds the bytes read each second while the source is in use.
	Limit *rate.Limiter
	// Readers is how many reads are under way at a time; 0 stands for
	// DefaultReaders.
	Readers int
	// Checkpoint is how many bytes of a first copy a crash may cost; 0 stands
	// for DefaultCheckpoint.
	Checkpoint int64
	// Progress is told what happens; never while the view is held.
	Progress func(Event)
}

const (
	// DefaultMaxFreeze is how long a view is held at most.
	DefaultMaxFreeze = 3 * time.Second
	// DefaultReaders keep a disk's queue filled: most of what changes is small
	// and scattered, where one request at a time leaves a disk idle.
	DefaultReaders = 16
	// DefaultCheckpoint is how many bytes of a first copy a crash costs at most.
	DefaultCheckpoint = 1 << 30
)

// Event is one step of a run.
type Event struct {
	Phase string // "verify", "copy", "settle", "commit"
	Pass  int    // of copy, from 1
	Done  int64  // bytes of the phase that are done
	Total int64  // bytes of the phase
	Text  string // something to tell the user, "" mostly
}

// Report says what one run did to one mirror.
type Report struct {
	Source   string        `json:"source"`
	Target   string        `json:"target"`
	Tracker  string        `json:"tracker"`
	View     string        `json:"view"`
	Mode     string        `json:"mode"` // "full", "resume", "incremental" or "scan"
	MarkLost string        `json:"mark_lost,omitempty"`
	Mark     string        `json:"mark"`
	Passes   int           `json:"passes"`
	Changed  int64         `json:"bytes_changed"` // that the tracker named, or the whole source
	Read     int64         `json:"bytes_read"`
	Written  int64         `json:"bytes_written"`   // to the target
	Journal  int64         `json:"bytes_journaled"` // beside it
	Frozen   time.Duration `json:"-"`
	FrozenMS float64       `json:"frozen_ms"`
	Took     time.Duration `json:"-"`
	TookMS   float64       `json:"duration_ms"`
	Notes    []string      `json:"notes"`   // what was told during the run, of all its pairs
	Outcome  string        `json:"outcome"` // "ok", what went wrong, or "pending: " and that when the next run will finish it
}

// Run brings the mirrors of all pairs to one instant of their sources. Reports
// come in the order of the pairs, also when an error is returned.
func Run(ctx context.Context, pairs []*Pair, o Options) ([]Report, error) {
	o = o.withDefaults()
	r := &runner{o: o, began: time.Now(), frozen: o.Frozen}
	for _, p := range pairs {
		r.jobs = append(r.jobs, newJob(p, o.View.Kind()))
	}
	err := r.run(ctx)
	if err != nil {
		err = errors.Join(err, r.abort(err))
	}
	return r.reports(err), err
}

func (o Options) withDefaults() Options {
	if o.MaxFreeze <= 0 {
		o.MaxFreeze = DefaultMaxFreeze
	}
	if o.Readers <= 0 {
		o.Readers = DefaultReaders
	}
	if o.Checkpoint <= 0 {
		o.Checkpoint = DefaultCheckpoint
	}
	if o.Progress == nil {
		o.Progress = func(Event) {}
	}
	return o
}

type runner struct {
	o      Options
	jobs   []*job
	began  time.Time
	held   bool // the view is
	frozen time.Duration
	view   view.Report
	speed  speed
}

func (r *runner) run(ctx context.Context) error {
	for _, j := range r.jobs {
		if err := j.begin(ctx, r.o.Progress); err != nil {
			return fmt.Errorf("%s: %w", j.Name, err)
		}
	}
	for attempt := 1; ; attempt++ {
		if err := r.precopy(ctx); err != nil {
			return err
		}
		again, err := r.final(ctx, attempt)
		if err != nil {
			return err
		}
		if !again {
			return r.commit(ctx)
		}
	}
}

func (r *runner) commit(ctx context.Context) error {
	r.o.Progress(Event{Phase: "commit"})
	// All are sealed before any is published, and all are published before the
	// long work of applying begins: what can fail has failed by then.
	for _, step := range []func(*job) error{
		func(j *job) error { return j.seal(r.report(j, nil)) },
		(*job).publish,
		(*job).finish,
	} {
		for _, j := range r.jobs {
			if err := step(j); err != nil {
				return fmt.Errorf("%s: %w", j.Target, err)
			}
		}
	}
	for _, j := range r.jobs {
		// The copy is there, whatever happens to the mark: without it the next
		// run compares.
		if err := j.Tracker.Keep(context.WithoutCancel(ctx), j.Owner, j.vouchable()); err != nil {
			r.o.Progress(Event{Text: fmt.Sprintf("%s: the next run will compare everything: %v", j.Name, err)})
		}
	}
	if err := r.view.PostHook; err != nil {
		return fmt.Errorf("the copy is complete, but: %w", err)
	}
	return nil
}

// abort leaves every mirror as it was, or a first copy where the next run can go
// on.
func (r *runner) abort(cause error) error {
	var errs []error
	for _, j := range r.jobs {
		if j.update != nil && !j.committed() {
			errs = append(errs, j.abort(r.report(j, cause)))
		}
	}
	return errors.Join(errs...)
}

func (r *runner) reports(err error) []Report {
	out := make([]Report, len(r.jobs))
	for i, j := range r.jobs {
		out[i] = r.report(j, err)
	}
	return out
}

func (r *runner) report(j *job, err error) Report {
	rep := j.report
	rep.Written = j.written.Load()
	rep.Frozen, rep.Took = r.frozen, time.Since(r.began)
	rep.FrozenMS, rep.TookMS = milliseconds(rep.Frozen), milliseconds(rep.Took)
	if j.update != nil {
		rep.Journal = j.update.JournalBytes()
	}
	switch rep.Outcome = "ok"; {
	case err == nil || j.finished:
	case j.committed():
		rep.Outcome = "pending: " + err.Error()
	default:
		rep.Outcome = err.Error()
	}
	return rep
}

func milliseconds(d time.Duration) float64 {
	return float64(d.Microseconds()) / 1000
}
