package transfer

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"tidemark/extent"
)

const (
	// maxPasses ends a copy that shrinks a little with every pass.
	maxPasses = 30
	// shrink is what a pass must leave at most, of what it was given, for
	// another one to be worth while.
	shrink = 0.7
	// smallRest is the time to copy the rest below which no further pass is made.
	smallRest = 20 * time.Millisecond
	// checkpointAge is how long a first copy goes on without being made durable.
	checkpointAge = 10 * time.Second
)

// precopy copies what has changed while the source is in use, until the rest is
// small or stops shrinking. A tracker that cannot name changes makes that
// useless: everything would be read again from the view.
func (r *runner) precopy(ctx context.Context) error {
	for n := 1; ; n++ {
		before := r.todo()
		if err := r.copyLive(ctx, n); err != nil {
			return err
		}
		if err := r.flush(ctx); err != nil {
			return err
		}
		rest := r.todo()
		if rest == 0 || r.speed.time(rest) <= smallRest || n >= maxPasses || float64(rest) > shrink*float64(before) && n > 1 {
			return nil
		}
	}
}

// flush has the users of the sources write out what they hold in memory, so that
// the view need not wait for it, and finds out what that changed.
func (r *runner) flush(ctx context.Context) error {
	live := r.liveJobs()
	if len(live) == 0 {
		return nil
	}
	if err := r.o.View.Flush(ctx); err != nil {
		return err
	}
	for _, j := range live {
		for _, step := range []func(context.Context) error{j.endEpoch, j.gather, j.Tracker.Persist} {
			if err := step(ctx); err != nil {
				return fmt.Errorf("%s: %w", j.Name, err)
			}
		}
	}
	return nil
}

// todo returns how many bytes are left to copy of sources that can be copied
// while in use.
func (r *runner) todo() int64 {
	var n int64
	for _, j := range r.liveJobs() {
		n += j.todo.Bytes()
	}
	return n
}

// liveJobs returns the jobs whose trackers can name changes while the source is in use.
func (r *runner) liveJobs() []*job {
	var live []*job
	for _, j := range r.jobs {
		if j.traits.NamesChanges && !j.traits.OnlyAtInstant {
			live = append(live, j)
		}
	}
	return live
}

func (r *runner) copyLive(ctx context.Context, n int) error {
	jobs, err := r.toCopyLive(ctx)
	if err != nil {
		return err
	}
	total, done := int64(0), int64(0)
	for _, j := range jobs {
		total += j.todo.Bytes()
	}
	began := time.Now()
	for _, j := range jobs {
		err := r.copyJob(ctx, j, j.Source, func(bytes int64) {
			done += bytes
			r.o.Progress(Event{Phase: "copy", Pass: n, Done: done, Total: total})
		})
		if err != nil {
			return fmt.Errorf("%s: %w", j.Name, err)
		}
	}
	r.speed.measured(total, time.Since(began))
	return nil
}

// toCopyLive returns the jobs with something to copy, after having drained the sources
// whose trackers do not see the end of a write. A drain makes users wait: what is small
// enough is left for the last pass.
func (r *runner) toCopyLive(ctx context.Context) ([]*job, error) {
	var jobs []*job
	for _, j := range r.liveJobs() {
		if j.todo.Empty() || j.traits.NeedsDrain && r.speed.time(j.todo.Bytes()) <= smallRest {
			continue
		}
		if j.traits.NeedsDrain {
			if err := j.Tracker.Drain(ctx); err != nil {
				return nil, fmt.Errorf("%s: %w", j.Name, err)
			}
		}
		jobs = append(jobs, j)
	}
	return jobs, nil
}

// copyJob copies all that one job has to do from a source to its sink, and tells
// progress, one call at a time, the bytes of each batch.
func (r *runner) copyJob(ctx context.Context, j *job, from Source, progress func(int64)) error {
	j.txn.NextPass()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	group, ctx := errgroup.WithContext(ctx)
	ended := make(chan finished, r.o.Readers)
	p := &pass{
		source: from, readers: r.o.Readers, blockSize: j.have.Block, limit: r.throttle, put: j.put,
		done: func(b batch, bytes int64) { ended <- finished{b, bytes} },
	}
	group.Go(func() error {
		defer close(ended)
		return p.run(ctx, j.todo)
	})
	group.Go(func() error { return j.follow(ended, r.o.Checkpoint, progress, cancel) })
	err := group.Wait()
	j.report.Read += p.read.Load()
	if err != nil {
		return err
	}
	j.passed(j.todo)
	return nil
}

// finished is a batch that the sink has.
type finished struct {
	batch batch
	bytes int64
}

// follow counts finished batches, and makes a first copy durable every now and
// then while the copying goes on. It keeps receiving after an error, so that
// no reader waits for it.
func (j *job) follow(ended <-chan finished, every int64, progress func(int64), stop context.CancelCauseFunc) error {
	var err error
	saved, savedAt := int64(0), time.Now()
	if j.progress != nil {
		saved = j.progress.get()
	}
	for f := range ended {
		progress(f.bytes)
		if j.progress == nil || j.filled {
			continue
		}
		at := j.progress.done(f.batch)
		if err == nil && (at-saved >= every || at > saved && time.Since(savedAt) >= checkpointAge) {
			saved, savedAt = at, time.Now()
			if err = j.txn.Checkpoint(at, j.start); err != nil {
				stop(err)
			}
		}
	}
	return err
}

// throttle keeps to the limit on the bytes read while nobody waits.
func (r *runner) throttle(ctx context.Context, n int) error {
	if r.o.Limit == nil || r.waited {
		return nil
	}
	for n > 0 {
		take := min(n, r.o.Limit.Burst())
		if err := r.o.Limit.WaitN(ctx, take); err != nil {
			return err
		}
		n -= take
	}
	return nil
}

// speed is how fast the run has been copying; it serves to tell how long the rest
// will take.
type speed struct {
	bytes int64
	took  time.Duration
}

const (
	// presumedSpeed stands in until something has been measured, bytes a second.
	presumedSpeed = 100 << 20
	// leastMeasured is the shortest copy that tells anything about speed.
	leastMeasured = 10 * time.Millisecond
)

// measured adds one pass. Newer passes count for more, because the last ones are
// the small and scattered ones that the rest will be like.
func (s *speed) measured(bytes int64, took time.Duration) {
	if took < leastMeasured {
		return
	}
	s.bytes, s.took = s.bytes/4+bytes, s.took/4+took
}

// time returns how long it takes to copy bytes.
func (s *speed) time(bytes int64) time.Duration {
	if s.bytes == 0 {
		return time.Duration(float64(bytes) / presumedSpeed * float64(time.Second))
	}
	return time.Duration(float64(bytes) / float64(s.bytes) * float64(s.took))
}

// String says how fast that is, and how that is known.
func (s *speed) String() string {
	if s.bytes == 0 {
		return fmt.Sprintf("%d MiB/s, which is presumed", presumedSpeed>>20)
	}
	return fmt.Sprintf("%.1f MiB/s, as measured", float64(s.bytes)/s.took.Seconds()/(1<<20))
}

// wholeOf returns the set of all bytes of a source.
func wholeOf(size int64) extent.Set { return extent.NewSet(extent.Extent{Len: size}) }
