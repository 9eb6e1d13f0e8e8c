package job

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/linux/atomicfile"
	"tidemark/transfer"
	"tidemark/words"
)

var (
	// ErrBusy says that a run of the job is under way.
	ErrBusy = errors.New("a run of this job is under way")
	// ErrGone says that a copy which the job made is not there any more: a disk that is
	// not mounted, mostly, in whose place another would be filled.
	ErrGone = errors.New("the copy that it made is not there any more")
	// ErrUnknown says that the file has no job of that name.
	ErrUnknown = errors.New("no such job")
)

// Record is what is known of a job's runs.
type Record struct {
	First       time.Time `json:"first,omitzero"`        // beginning of the first run
	Began       time.Time `json:"began,omitzero"`        // of the last run
	LastSuccess time.Time `json:"last_success,omitzero"` // beginning of the last run that made a copy: that is no older
	TookMS      float64   `json:"duration_ms"`
	Read        int64     `json:"bytes_read"`
	Written     int64     `json:"bytes_written"`
	FrozenMS    float64   `json:"frozen_ms"`
	Runs        uint64    `json:"runs"`
	Failures    uint64    `json:"failures"`
	Outcome     string    `json:"outcome"`           // OK, or what went wrong
	Targets     []string  `json:"targets,omitempty"` // of the last success
}

// OK is the outcome of a run that did all that it should.
const OK = "ok"

// cutOff is the outcome of a run that has not ended.
const cutOff = "it has not ended: it was killed, or the machine went down"

// watch is what the search for late jobs remembers of one.
type watch struct {
	Since time.Time `json:"since,omitzero"` // when the job was seen first
	Told  time.Time `json:"told,omitzero"`  // the success of which it was told that it is too old
}

// Store keeps the records of jobs in a folder.
type Store struct{ Dir string }

func (s Store) path(name, kind string) string { return filepath.Join(s.Dir, name+kind) }

// Record returns what is known of a job; the zero Record when it never ran.
func (s Store) Record(name string) (Record, error) {
	var r Record
	err := atomicfile.ReadJSON(s.path(name, ".run.json"), &r)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return r, err
}

func (s Store) watch(name string) (watch, error) {
	var w watch
	err := atomicfile.ReadJSON(s.path(name, ".late.json"), &w)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return w, err
}

// lock takes the lock of a job, or one that is no job's and begins with _; with wait when
// whoever has it lets go. The process holds it until it calls the function returned, or
// ends.
func (s Store) lock(name string, wait bool) (func(), error) {
	if err := atomicfile.MkdirAll(s.Dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(s.path(name, ".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	how := unix.F_OFD_SETLK
	if wait {
		how = unix.F_OFD_SETLKW
	}
	if err := unix.FcntlFlock(f.Fd(), how, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EAGAIN) {
			err = ErrBusy
		}
		return nil, fmt.Errorf("job %s: %w", name, err)
	}
	return func() { _ = f.Close() }, nil
}

// Running reports whether a run of the job is under way. It takes no lock, which would
// keep a run from its own.
func (s Store) Running(name string) bool {
	f, err := os.Open(s.path(name, ".lock"))
	if err != nil {
		return false
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock)
	return err == nil && lock.Type != unix.F_UNLCK
}

// Run runs a job: do makes the copies. It keeps the record, writes the metrics, and tells
// who is to be told; what goes wrong with that goes to warn and is no failure of the job.
// The error is that of do, wraps ErrBusy or ErrGone, or is that of keeping the record.
func (s Store) Run(ctx context.Context, c *Config, j Job, do func(context.Context) ([]transfer.Report, error), warn func(error)) error {
	unlock, err := s.lock(j.Name, false)
	if err != nil {
		return err
	}
	defer unlock()
	// What is damaged cannot be gone on with: a copy is worth more than its record.
	rec, err := s.Record(j.Name)
	if err != nil {
		warn(fmt.Errorf("job %s: its record begins anew: %w", j.Name, err))
	}
	rec.begin(time.Now())
	if err := s.keep(j, rec); err != nil {
		warn(err)
	}
	var reports []transfer.Report
	failed := rec.missing(j)
	if failed == nil {
		reports, failed = do(ctx)
	}
	rec.add(j, reports, failed)
	kept := s.keep(j, rec)
	event, message := Success, "job "+j.Name+": done"
	if err := errors.Join(failed, kept); err != nil {
		event, message = Failure, "job "+j.Name+": "+err.Error()
	}
	for _, err := range []error{s.WriteMetrics(c), j.Notify.Tell(ctx, j.Name, event, message)} {
		if err != nil {
			warn(err)
		}
	}
	return errors.Join(failed, kept)
}

func (s Store) keep(j Job, r Record) error {
	err := atomicfile.WriteJSON(s.path(j.Name, ".run.json"), atomicfile.Options{Durable: true}, r)
	if err != nil {
		err = fmt.Errorf("job %s: its record is not kept: %w", j.Name, err)
	}
	return err
}

// begin notes a run that begins. One that never ends, as when it is killed, has failed.
func (r *Record) begin(now time.Time) {
	if r.Outcome == cutOff {
		r.Failures++
	}
	r.Began, r.Outcome = now, cutOff
	if r.First.IsZero() {
		r.First = now
	}
	r.Runs++
}

// missing says which copy that the job made, and is to go on with, is not there any more.
func (r *Record) missing(j Job) error {
	for _, p := range j.Pairs {
		target := p.Target
		if !slices.Contains(r.Targets, target) {
			continue
		}
		if _, err := os.Stat(target); filepath.IsAbs(target) && errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: %w", target, ErrGone)
		}
	}
	return nil
}

// add notes a run that has ended.
func (r *Record) add(j Job, reports []transfer.Report, failed error) {
	r.TookMS = float64(time.Since(r.Began).Microseconds()) / 1000
	r.Read, r.Written, r.FrozenMS = 0, 0, 0
	for _, rep := range reports {
		r.Read += rep.Read
		r.Written += rep.Written
		r.FrozenMS = max(r.FrozenMS, rep.FrozenMS) // they were frozen together
	}
	r.Outcome = OK
	if failed != nil {
		r.Failures++
		r.Outcome = failed.Error()
		return
	}
	r.LastSuccess, r.Targets = r.Began, nil
	for _, p := range j.Pairs {
		r.Targets = append(r.Targets, p.Target)
	}
}

// LateSince returns from when on a job is late, and the zero time when it is not: by the
// age of its last copy, or the time since it was first seen or run if it has none.
func (s Store) LateSince(j Job, now time.Time) (time.Time, error) {
	rec, err := s.Record(j.Name)
	if err != nil {
		return time.Time{}, err
	}
	w, err := s.watch(j.Name)
	if err != nil {
		return time.Time{}, err
	}
	return lateSince(j, rec, w, now), nil
}

func lateSince(j Job, rec Record, w watch, now time.Time) time.Time {
	from := rec.LastSuccess
	for _, t := range []time.Time{rec.First, w.Since} {
		if rec.LastSuccess.IsZero() && !t.IsZero() && (from.IsZero() || t.Before(from)) {
			from = t
		}
	}
	end := from.Add(j.MaxAge)
	if j.MaxAge == 0 || from.IsZero() || !end.Before(now) {
		return time.Time{}
	}
	return end
}

// Late looks at all jobs that have a MaxAge and tells who is to be told that one is late,
// once until it has made a copy again. It writes the metrics. What goes wrong with telling
// goes to warn; such a job is told of at the next call.
func (s Store) Late(ctx context.Context, c *Config, now time.Time, warn func(error)) error {
	unlock, err := s.lock("_late", true)
	if err != nil {
		return err
	}
	defer unlock()
	var errs []error
	for _, j := range c.Jobs {
		if j.MaxAge > 0 {
			errs = append(errs, s.lookAt(ctx, j, now, warn))
		}
	}
	return errors.Join(append(errs, s.WriteMetrics(c))...)
}

func (s Store) lookAt(ctx context.Context, j Job, now time.Time, warn func(error)) error {
	rec, err := s.Record(j.Name)
	if err != nil {
		return err
	}
	w, err := s.watch(j.Name)
	if err != nil {
		return err
	}
	was := w
	if w.Since.IsZero() {
		w.Since, w.Told = now, now // no time of a copy, not even that of none
	}
	if !lateSince(j, rec, w, now).IsZero() && !w.Told.Equal(rec.LastSuccess) {
		if err := j.Notify.Tell(ctx, j.Name, Late, lateMessage(j, rec)); err != nil {
			warn(err)
		} else {
			w.Told = rec.LastSuccess
		}
	}
	if w == was {
		return nil
	}
	return atomicfile.WriteJSON(s.path(j.Name, ".late.json"), atomicfile.Options{Durable: true}, w)
}

func lateMessage(j Job, rec Record) string {
	last := "it has made no copy yet"
	if !rec.LastSuccess.IsZero() {
		last = "its last copy is of " + words.Time(rec.LastSuccess)
	}
	return fmt.Sprintf("job %s is late: %s, and max-age is %v", j.Name, last, j.MaxAge)
}
