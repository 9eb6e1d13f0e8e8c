package transfer

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"tidemark/extent"
	"tidemark/track"
)

// job is one pair during one run.
type job struct {
	*Pair
	index  int // of the pair, and of its source in the view
	size   int64
	have   Have
	traits track.Traits
	txn    Txn
	must   extent.Set // that the sink wants copied, whatever the tracker says
	tell   func(Event)
	report Report

	start  track.Mark // where a first copy counts from
	cut    track.Mark // the newest
	before track.Mark // the cut before; what changed since is not in todo yet
	doubt  bool       // what was copied before may have changed unseen; see track.Cut
	todo   extent.Set // what the next pass copies
	copied extent.Set // since start, or in this run: a doubt is about it
	moment time.Time  // of cut

	written  atomic.Int64
	progress *watermark // of a first copy
	filled   bool       // the first copy has been through once
}

func newJob(p *Pair, index int, viewKind string) *job {
	return &job{Pair: p, index: index, size: p.Source.Size(), traits: p.Tracker.Traits(), report: Report{
		Source: p.Name, Target: p.Target, Tracker: p.Tracker.Kind(), View: viewKind,
	}}
}

// begin begins with the sink, and finds out what the first pass has to copy, unless that is known
// at the instant only.
func (j *job) begin(ctx context.Context, tell func(Event)) error {
	var err error
	j.have, j.tell = j.Sink.Have(), tell
	if j.txn, j.must, err = j.Sink.Begin(ctx, j.size, tell); err != nil {
		return err
	}
	if j.traits.OnlyAtInstant {
		return nil
	}
	if err := j.endEpoch(ctx); err != nil {
		return err
	}
	return j.prepare(ctx)
}

// prepare plans what is to be copied, at the first cut.
func (j *job) prepare(ctx context.Context) error {
	changes, err := j.since(ctx, j.have.Mark)
	if err != nil {
		return err
	}
	j.before, j.doubt = "", false // nothing was copied before the first cut
	j.plan(changes)
	if j.report.MarkLost != "" {
		j.tell(Event{Text: fmt.Sprintf("%s: %s: comparing all of it", j.Name, j.report.MarkLost)})
	}
	j.todo = j.todo.Union(j.must).Align(j.have.Block, j.size)
	j.report.Changed = j.todo.Bytes()
	if j.have.Complete {
		return nil
	}
	at := int64(0)
	if j.report.Mode == "resume" {
		at = j.have.Copied
	}
	j.progress, j.copied = newWatermark(at), wholeOf(at)
	return j.Tracker.Keep(ctx, j.Owner, j.start, false)
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
func (j *job) plan(changes extent.Set) {
	whole, have := wholeOf(j.size), j.have
	vouched := have.Mark != "" && j.report.MarkLost == "" && have.Size == j.size
	switch {
	case have.Complete && vouched:
		j.report.Mode, j.todo = "incremental", changes
	case have.Complete:
		j.report.Mode, j.todo = "scan", whole
	case vouched:
		done := extent.Extent{Len: have.Copied}
		j.report.Mode, j.start = "resume", have.Mark
		j.todo = whole.Subtract(extent.NewSet(done)).Union(changes.Clip(done))
	default:
		j.report.Mode, j.start, j.todo = "full", j.vouchable(), whole
		if have.Compared {
			j.report.Mode = "scan"
		}
	}
}

// endEpoch makes this moment the newest mark. It writes to no file and computes
// nothing: it is called at the instant of a view.
func (j *job) endEpoch(ctx context.Context) error {
	cut, err := j.Tracker.Cut(ctx)
	if err != nil {
		return j.lostTrack(err)
	}
	if j.before == "" {
		j.before = j.cut
	}
	j.cut, j.moment, j.doubt = cut.Mark, time.Now(), j.doubt || cut.Doubt
	return nil
}

// vouchable returns the newest mark if it will be of any use to a later run.
func (j *job) vouchable() track.Mark {
	if !j.traits.NamesChanges {
		return ""
	}
	return j.cut
}

// gather adds to todo what changed in the epochs that were ended since the last call.
func (j *job) gather(ctx context.Context) error {
	if j.traits.OnlyAtInstant {
		return j.prepare(ctx)
	}
	if !j.traits.NamesChanges {
		j.todo, j.before = wholeOf(j.size), ""
		return nil
	}
	if j.before == "" {
		return nil
	}
	changes, err := j.Tracker.Changes(ctx, j.before, j.cut)
	if err != nil {
		return j.lostTrack(err)
	}
	j.report.Changed += changes.Subtract(j.todo).Bytes()
	if j.doubt {
		changes = changes.Union(j.copied)
	}
	j.todo = j.todo.Union(changes.Align(j.have.Block, j.size))
	j.before, j.doubt = "", false
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

// put hands chunks to the sink.
func (j *job) put(chunks []Chunk) error {
	n, err := j.txn.Put(chunks)
	j.written.Add(n)
	return err
}

func (j *job) seal(rep Report, postHook error) error {
	mark := j.vouchable()
	j.report.Mark = string(mark)
	return j.txn.Seal(Commit{Mark: mark, Time: j.moment, Run: recordOf(rep, j.moment), PostHook: postHook})
}

// abort forgets the change, but keeps what a first copy has copied.
func (j *job) abort(rep Report) error {
	var err error
	if j.progress != nil {
		err = j.txn.Checkpoint(j.progress.get(), j.start)
	}
	return errors.Join(err, j.txn.Abort(recordOf(rep, time.Now())))
}

func recordOf(rep Report, at time.Time) RunRecord {
	return RunRecord{
		Time: at, Tracker: rep.Tracker, View: rep.View, Changed: rep.Changed, Read: rep.Read,
		Written: rep.Written, Frozen: rep.Frozen, Took: rep.Took, Outcome: rep.Outcome,
	}
}
