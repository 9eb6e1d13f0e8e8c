// Package transfer brings copies of sources up to date: it asks a tracker what
// changed, reads that from the source, and hands it to a sink.
//
// For most uses, open a source, a tracker, a view provider and a sink, and call [Run];
// package pairs does that for sources and targets that are named by path.
//
// Run copies what changed while the source is in use, pass after pass, until little is
// left. Then the provider takes a view; at its instant the trackers cut their epochs;
// the rest is read from the view; and the sinks commit with the mark of exactly that
// moment. A view that broke, a write since the instant, or a tracker that cannot vouch
// for its answer ends the run with an error and leaves the sinks as they were.
//
// The package writes nothing to a source, and knows no file format and no kind of sink.
// Run must not be called twice at once with the same pair.
package transfer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/time/rate"

	"tidemark/track"
	"tidemark/view"
)

var (
	// ErrNotConverging says that the source is written to faster than it can be
	// copied within the frozen time that Options allow.
	ErrNotConverging = errors.New("the rest does not get small enough to be copied within the allowed frozen time")
	// ErrUntracked is ErrNotConverging for a source whose changes are not tracked, and which
	// therefore is read while users wait, all of it.
	ErrUntracked = errors.New("its changes are not tracked")
	// ErrWrittenWhileHeld says that the source was written to while the view was
	// open, so that there was no instant to copy.
	ErrWrittenWhileHeld = errors.New("the source was written to while it should have stood still")
	// ErrResized says that the source changed its size during the run.
	ErrResized = errors.New("the source changed its size during the run")
)

// Source is what is read; block.Device is one.
type Source = view.Source

// Pair is one source and the sink of its copy.
type Pair struct {
	Name    string // of the source, for messages
	Target  string // name of the sink, for messages and the report
	Source  Source // read while it is in use; the view may read another one in its place
	Tracker track.Tracker
	// Untracked tells in words why the tracker cannot name changes, and what would help, ""
	// where that goes without saying.
	Untracked string
	Sink      Sink
	Owner     string // under which the tracker keeps the sink's mark
	// Freezes says that the sink lies on a filesystem that the view freezes: nothing may
	// be written to it while users wait.
	Freezes bool
}

// Options say how to run. The zero value of each field but View is usable.
type Options struct {
	View view.Provider // of the sources, in the order of the pairs
	// Apart, which may be nil, is what View gives way to when more is left than may be copied
	// while users wait: a view of the same sources for which nobody waits.
	Apart view.Provider
	// MaxFreeze is the longest time that users of a source may wait for the view;
	// 0 stands for DefaultMaxFreeze.
	MaxFreeze time.Duration
	// ForceFreeze lets users wait for as long as the provider does.
	ForceFreeze bool
	// Frozen is for how long the sources were frozen before the run, for its sake;
	// reports add it.
	Frozen time.Duration
	// Limit bounds the bytes read each second while nobody waits for the view.
	Limit *rate.Limiter
	// Readers is how many reads are under way at a time; 0 stands for
	// DefaultReaders.
	Readers int
	// Checkpoint is how many bytes of a first copy a crash may cost; 0 stands
	// for DefaultCheckpoint.
	Checkpoint int64
	// HoldBytes bounds what is kept in memory while users wait; 0 stands for
	// DefaultHoldBytes.
	HoldBytes int64
	// Progress is told what happens; never while users wait for the view.
	Progress func(Event)
}

const (
	// DefaultMaxFreeze is how long users of a source wait at most.
	DefaultMaxFreeze = 3 * time.Second
	// DefaultReaders keep a disk's queue filled: most of what changes is small
	// and scattered, where one request at a time leaves a disk idle.
	DefaultReaders = 16
	// DefaultCheckpoint is how many bytes of a first copy a crash costs at most.
	DefaultCheckpoint = 1 << 30
	// DefaultHoldBytes is how much is kept in memory while users wait.
	DefaultHoldBytes = 256 << 20
)

// Event is one step of a run.
type Event struct {
	Phase string // "verify", "copy", "freeze", "commit"
	Pass  int    // of copy, from 1
	Done  int64  // bytes of the phase that are done
	Total int64  // bytes of the phase
	// Stored is how many bytes a vault has stored for the run so far.
	Stored int64
	Text   string // something to tell the user, "" mostly
}

// Count returns a function that is told bytes of a phase that are done, and tells of them.
func Count(phase string, total int64, progress func(Event)) func(bytes int64) {
	done := int64(0)
	return func(n int64) {
		done += n
		progress(Event{Phase: phase, Done: done, Total: total})
	}
}

// limitBurst is what may be read at once under a limit, in bytes.
const limitBurst = 1 << 20

// NewLimiter bounds the bytes that are read in a second; 0 is no limit.
func NewLimiter(bytesPerSec int64) *rate.Limiter {
	if bytesPerSec == 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(bytesPerSec), limitBurst)
}

// Report says what one run did to one sink.
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
	Written  int64         `json:"bytes_written"`          // to the target
	Journal  int64         `json:"bytes_journaled"`        // beside it
	Disk     string        `json:"disk,omitempty"`         // of a vault
	Point    string        `json:"point,omitempty"`        // id of what was made in a vault
	Stored   int64         `json:"bytes_stored,omitempty"` // by a vault, after compression
	Frozen   time.Duration `json:"-"`
	FrozenMS float64       `json:"frozen_ms"`
	Took     time.Duration `json:"-"`
	TookMS   float64       `json:"duration_ms"`
	Notes    []string      `json:"notes"`   // what was told during the run, of all its pairs
	Code     string        `json:"code"`    // a word for Outcome that stays what it is; left to the caller
	Outcome  string        `json:"outcome"` // "ok", what went wrong, or "pending: " and that when the next run will finish it
}

// Run brings the sinks of all pairs to one instant of their sources. Reports
// come in the order of the pairs, also when an error is returned.
func Run(ctx context.Context, pairs []*Pair, o Options) ([]Report, error) {
	r := newRunner(pairs, o)
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
	if o.HoldBytes <= 0 {
		o.HoldBytes = DefaultHoldBytes
	}
	if o.Progress == nil {
		o.Progress = func(Event) {}
	}
	return o
}

type runner struct {
	o        Options
	traits   view.Traits
	jobs     []*job
	began    time.Time
	frozen   time.Duration
	waited   bool  // users wait for the view
	postHook error // of the view that was committed
	speed    speed
}

func newRunner(pairs []*Pair, o Options) *runner {
	r := &runner{o: o.withDefaults(), traits: o.View.Traits(), began: time.Now(), frozen: o.Frozen}
	for i, p := range pairs {
		r.jobs = append(r.jobs, newJob(p, i, o.View.Kind()))
	}
	return r
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
	// long work of finishing begins: what can fail has failed by then. From the publishing on
	// nothing goes back, so that the marks are kept before the copies are finished.
	for _, step := range []func(*job) error{
		func(j *job) error { return j.seal(r.report(j, nil), r.postHook) },
		func(j *job) error { return j.txn.Publish() },
		func(j *job) error { r.keep(ctx, j); return nil },
		func(j *job) error { return j.txn.Finish() },
	} {
		for _, j := range r.jobs {
			if err := step(j); err != nil {
				return fmt.Errorf("%s: %w", j.Target, err)
			}
		}
	}
	if r.postHook != nil {
		return fmt.Errorf("the copy is complete, but: %w", r.postHook)
	}
	return nil
}

// keep keeps the mark of a job. The copy is there, whatever happens to it: without it the next run
// compares. Nothing was in flight at the mark, which is of the instant.
func (r *runner) keep(ctx context.Context, j *job) {
	if err := j.Tracker.Keep(context.WithoutCancel(ctx), j.Owner, j.vouchable(), true); err != nil {
		r.o.Progress(Event{Text: fmt.Sprintf("%s: the next run will compare everything: %v", j.Name, err)})
	}
}

// abort leaves every sink as it was, or a first copy where the next run can go
// on.
func (r *runner) abort(cause error) error {
	var errs []error
	for _, j := range r.jobs {
		if j.txn != nil && j.txn.State() == TxnOpen {
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
	state := TxnOpen
	if j.txn != nil {
		rep.Journal, state = j.txn.Journaled(), j.txn.State()
	}
	switch rep.Outcome = "ok"; {
	case err == nil || state == TxnFinished:
	case state == TxnCommitted:
		rep.Outcome = "pending: " + err.Error()
	default:
		rep.Outcome = err.Error()
	}
	return rep
}

func milliseconds(d time.Duration) float64 {
	return float64(d.Microseconds()) / 1000
}
