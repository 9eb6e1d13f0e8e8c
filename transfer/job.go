package transfer

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"tidemark/extent"
	"tidemark/format/sidecar"
	"tidemark/track"
	"tidemark/transfer/mirror"
)

// job is one pair during one run.
type job struct {
	*Pair
	size   int64
	update *mirror.Update
	report Report

	start  track.Mark // where a first copy counts from
	cut    track.Mark // the newest
	todo   extent.Set // what the next pass copies
	copied extent.Set // since start, or in this run: what a doubt is about
	moment time.Time  // of cut

	written  atomic.Int64
	progress *watermark // of a first copy
	filled   bool       // the first copy has been through once
	finished bool
}

func newJob(p *Pair, viewKind string) *job {
	return &job{Pair: p, size: p.Source.Size(), report: Report{
		Source: p.Name, Target: p.Target, Tracker: p.Tracker.Kind(), View: viewKind,
	}}
}

// live reports whether the tracker can name changes, so that copying before the
// view is held saves work.
func (j *job) live() bool {
	_, scan := j.Tracker.(*track.Scan)
	return !scan
}

// begin finds out what the first pass has to copy.
func (j *job) begin(ctx context.Context, progress func(Event)) error {
	distrust, err := j.checkTarget(ctx, progress)
	if err != nil {
		return err
	}
	if j.update, err = j.Store.Begin(j.size, distrust, j.Blank); err != nil {
		return err
	}
	if _, err := j.closeEpoch(ctx); err != nil {
		return err
	}
	st := j.Store.State()
	if j.Stranger {
		st.Mark = "" // of other bytes, perhaps of the same disk
	}
	changes, err := j.since(ctx, track.Mark(st.Mark))
	if err != nil {
		return err
	}
	j.plan(st, changes)
	if j.report.MarkLost != "" && st.Mark != "" {
		progress(Event{Text: fmt.Sprintf("%s: %s: comparing all of it", j.Name, j.report.MarkLost)})
	}
	j.todo = j.todo.Union(distrust).Align(st.BlockSize, j.size)
	j.report.Changed = j.todo.Bytes()
	if st.Complete {
		return nil
	}
	at := j.planCopied(st)
	j.progress, j.copied = newWatermark(at), wholeOf(at)
	return j.Tracker.Keep(ctx, j.Owner, j.start)
}

// checkTarget returns the blocks of a target that someone else wrote to.
func (j *job) checkTarget(ctx context.Context, progress func(Event)) (extent.Set, error) {
	if m := j.Store.Misfit(); !m.Empty() {
		progress(Event{Text: fmt.Sprintf("%s: it is not %d bytes long, as it should be: setting that right", j.Target, j.Store.State().Size)})
	}
	why := j.Store.Suspect()
	if why == "" {
		return extent.Set{}, nil
	}
	progress(Event{Text: fmt.Sprintf("%s: %s: checking it against its checksums", j.Target, why)})
	total, done := j.Store.State().Size, int64(0)
	bad, err := j.Store.Check(ctx, func(n int64) {
		done += n
		progress(Event{Phase: "verify", Done: done, Total: total})
	})
	if err == nil && !bad.Empty() {
		progress(Event{Text: fmt.Sprintf("%s: %d bytes were changed by someone else: copying them again", j.Target, bad.Bytes())})
	}
	return bad, err
}

// since returns the changes since mark; a lost mark leaves the reason in the
// report.
func (j *job) since(ctx context.Context, mark track.Mark) (extent.Set, error) {
	if mark == "" {
		return extent.Set{}, nil
	}
	changes, err := j.Tracker.Changes(ctx, mark, j.cut)
	if errors.Is(err, track.ErrMarkLost) {
		j.report.MarkLost = err.Error()
		return extent.Set{}, nil
	}
	return changes, err
}

// plan sets what the first pass copies, and the mark that a first copy counts
// from.
func (j *job) plan(st sidecar.State, changes extent.Set) {
	whole := wholeOf(j.size)
	vouched := st.Mark != "" && j.report.MarkLost == "" && st.Size == j.size
	switch {
	case st.Complete && vouched:
		j.report.Mode, j.todo = "incremental", changes
	case st.Complete:
		j.report.Mode, j.todo = "scan", whole
	case vouched:
		done := extent.Extent{Len: st.Copied}
		j.report.Mode, j.start = "resume", track.Mark(st.Mark)
		j.todo = whole.Subtract(extent.NewSet(done)).Union(changes.Clip(done))
	default:
		j.report.Mode, j.start, j.todo = "full", j.vouchable(), whole
		if st.Foreign {
			j.report.Mode = "scan"
		}
	}
}

// planCopied returns up to where a first copy already holds what the source held
// at start or later.
func (j *job) planCopied(st sidecar.State) int64 {
	if j.report.Mode == "resume" {
		return st.Copied
	}
	return 0
}

// closeEpoch makes this moment the newest mark. It reports whether completions
// may have been missed, so that blocks copied earlier may have changed since.
func (j *job) closeEpoch(ctx context.Context) (doubt bool, err error) {
	cut, err := j.Tracker.Cut(ctx)
	if err != nil {
		return false, err
	}
	j.cut, j.moment = cut.Mark, time.Now()
	return cut.Doubt, nil
}

// vouchable returns the newest mark if it will be of any use to a later run.
func (j *job) vouchable() track.Mark {
	if !j.live() {
		return ""
	}
	return j.cut
}

// next closes the epoch and adds to todo what changed in it.
func (j *job) next(ctx context.Context) error {
	last := j.cut
	doubt, err := j.closeEpoch(ctx)
	if err != nil {
		return j.lostTrack(err)
	}
	if !j.live() {
		j.todo = wholeOf(j.size)
		return nil
	}
	changes, err := j.Tracker.Changes(ctx, last, j.cut)
	if err != nil {
		return j.lostTrack(err)
	}
	j.report.Changed += changes.Subtract(j.todo).Bytes()
	if doubt {
		changes = changes.Union(j.copied)
	}
	j.todo = j.todo.Union(changes.Align(j.Store.State().BlockSize, j.size))
	return nil
}

// lostTrack is the error of a tracker that lost its mark in the middle of a run.
// The next run compares everything by itself, so this is an error like any other,
// and no ErrMarkLost for the caller to act on.
func (j *job) lostTrack(err error) error {
	if !errors.Is(err, track.ErrMarkLost) {
		return err
	}
	if resized := j.sameSize(); resized != nil {
		return resized
	}
	return fmt.Errorf("during the run: %v", err)
}

// passed notes that set has been copied.
func (j *job) passed(set extent.Set) {
	j.report.Passes++
	j.copied = j.copied.Union(set)
	j.todo = j.todo.Subtract(set)
	j.filled = true
}

// sameSize refuses a source that was resized under us.
func (j *job) sameSize() error {
	now, err := j.Source.CurrentSize()
	if err != nil {
		return err
	}
	if now != j.size {
		return fmt.Errorf("%w: from %d to %d bytes", ErrResized, j.size, now)
	}
	return nil
}

func (j *job) seal(rep Report) error {
	mark := j.vouchable()
	rep.Mark, j.report.Mark = string(mark), string(mark)
	return j.update.Seal(func(s *sidecar.State) {
		s.Mark, s.Time, s.Source = string(mark), j.moment, j.Origin
		s.AddRun(runOf(rep, j.moment))
	})
}

func (j *job) publish() error {
	if err := j.update.Publish(); err != nil {
		return err
	}
	j.finished = !j.update.Journaled() // there is nothing to bring to the target
	j.Tracker.Settle(j.vouchable())
	return nil
}

// committed reports whether the update will be finished, if not by this run.
func (j *job) committed() bool { return j.update != nil && j.update.Committed() }

func (j *job) finish() error {
	if err := j.update.Finish(); err != nil {
		return err
	}
	j.finished = true
	return nil
}

// abort forgets the update, but keeps what a first copy has copied.
func (j *job) abort(rep Report) error {
	err := j.update.Abort()
	if j.progress != nil {
		return errors.Join(err, j.update.Checkpoint(j.progress.get(), string(j.start), true))
	}
	return errors.Join(err, j.Store.Record(runOf(rep, time.Now())))
}

func runOf(rep Report, at time.Time) sidecar.Run {
	return sidecar.Run{
		Time: at, Tracker: rep.Tracker, View: rep.View, Changed: rep.Changed, Read: rep.Read,
		Written: rep.Written, FrozenMS: rep.FrozenMS, TookMS: rep.TookMS, Outcome: rep.Outcome,
	}
}
