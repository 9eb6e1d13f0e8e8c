package transfer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"tidemark/extent"
	"tidemark/track"
	"tidemark/transfer/mirror"
	"tidemark/view"
)

const (
	// MaxAttempts is how often the view is held at most, when more was left than
	// expected and it had to be given up.
	MaxAttempts = 4
	// maxRounds is how often what was written although the view is held is
	// copied before the view is given up.
	maxRounds = 5
	// holdBytes bounds what is kept in memory while the view is held.
	holdBytes = 256 << 20
)

// errTooMuch says that more was left when the view was held than can be copied in
// the time: let go, copy while in use, and try again.
var errTooMuch = errors.New("too much is left")

// final copies the rest while the sources stand still. It returns again when the
// view had to be given up early and another round of copying may help.
func (r *runner) final(ctx context.Context, attempt int) (again bool, err error) {
	if rest := r.restBytes(); !r.unbounded() && r.speed.time(rest) > r.o.MaxFreeze {
		return false, fmt.Errorf("%w: %d bytes would take %v at %s, allowed are %v",
			ErrNotConverging, rest, r.speed.time(rest).Round(time.Millisecond), &r.speed, r.o.MaxFreeze)
	}
	r.o.Progress(Event{Phase: "settle"})
	held, err := r.o.View.Hold(ctx)
	if err != nil {
		return false, err
	}
	r.held = true
	kept, err := r.copyHeld(ctx, held)
	releaseErr := held.Release()
	r.held = false
	r.noteFrozen(held)
	if err == nil {
		err = releaseErr
	}
	if err != nil {
		giveBack(kept)
	}
	if errors.Is(err, view.ErrBroken) && r.timeWasUp(held) {
		err = errTooMuch
	}
	if errors.Is(err, errTooMuch) || errors.Is(err, ErrWrittenWhileHeld) {
		if attempt < MaxAttempts && ctx.Err() == nil && !r.echoes() {
			return true, nil
		}
		if errors.Is(err, errTooMuch) {
			return false, fmt.Errorf("%w, after %d attempts", ErrNotConverging, attempt)
		}
	}
	if err != nil {
		return false, err
	}
	return false, r.storeKept(kept)
}

// timeWasUp reports whether the view, which has been released, was held until it
// ended by itself: its clock may be ahead of ours.
func (r *runner) timeWasUp(held view.Held) bool {
	b, ok := held.(view.Breaker)
	return ok && !r.unbounded() && b.Report().Frozen >= r.o.MaxFreeze
}

// noteFrozen adds up how long the users of the sources had to wait.
func (r *runner) noteFrozen(held view.Held) {
	if b, ok := held.(view.Breaker); ok {
		r.frozen += b.Report().Frozen
		r.view = b.Report()
	}
}

// restBytes returns what is to be copied while the view is held, as far as known.
func (r *runner) restBytes() int64 {
	var n int64
	for _, j := range r.jobs {
		n += j.todo.Bytes()
	}
	return n
}

func (r *runner) unbounded() bool { return r.o.ForceFreeze || r.o.Unheld }

// kept is what was read while the view was held, and is not in the mirrors yet.
type kept struct {
	job    *job
	set    extent.Set
	chunks []mirror.Chunk
}

// keep notes that todo has been read, though it is not in the mirror.
func (j *job) keep(k *kept) {
	k.set, j.todo = j.todo, extent.Set{}
	j.copied = j.copied.Union(k.set)
}

// giveBack makes what was read and will not be stored something to do again.
func giveBack(all []kept) {
	for _, k := range all {
		k.job.todo = k.job.todo.Union(k.set)
	}
}

// copyHeld closes every epoch, reads the rest, and makes sure that nobody wrote
// meanwhile. What was read comes also with an error. Nothing may be written to a filesystem that is frozen, and nobody
// be talked to.
func (r *runner) copyHeld(ctx context.Context, held view.Held) (all []kept, err error) {
	ctx, cancel := r.bound(ctx, held)
	defer cancel()
	for range maxRounds {
		for _, j := range r.jobs {
			if err := j.next(ctx); err != nil {
				return all, fmt.Errorf("%s: %w", j.Name, err)
			}
		}
		round, err := r.copyRound(ctx, held)
		all = append(all, round...)
		if err != nil {
			return all, err
		}
		if err = r.stoodStill(ctx); !errors.Is(err, ErrWrittenWhileHeld) || !r.allLive() {
			return all, err
		}
		// A frozen XFS or Btrfs may still discard free space that it had promised
		// to discard before (xfs_discard.c, btrfs/discard.c). That ends by itself;
		// the instant is then a little later.
	}
	return all, r.stoodStill(ctx)
}

// allLive reports whether every tracker can name what was written since the epoch
// was closed.
func (r *runner) allLive() bool { return len(r.liveJobs()) == len(r.jobs) }

// copyRound reads what changed until the epochs were closed. What was read before
// an error comes with it.
func (r *runner) copyRound(ctx context.Context, held view.Held) ([]kept, error) {
	rest := r.restBytes()
	if left := r.o.MaxFreeze - time.Since(held.Since()); !r.unbounded() && r.speed.time(rest) > left {
		return nil, errTooMuch
	}
	inMemory := rest <= holdBytes
	var round []kept
	for _, j := range r.jobs {
		if j.Freezes && !inMemory {
			return round, fmt.Errorf("%s: the target lies on a filesystem that is frozen, and %d bytes are too many to keep in memory: %w",
				j.Target, rest, ErrNotConverging)
		}
		k, err := r.copyHeldJob(ctx, j, inMemory)
		if err != nil {
			return round, r.explain(ctx, j, err)
		}
		round = append(round, k)
	}
	return round, nil
}

func (r *runner) stoodStill(ctx context.Context) error {
	for _, j := range r.jobs {
		if err := j.stoodStill(ctx); err != nil {
			return fmt.Errorf("%s: %w", j.Name, err)
		}
	}
	return nil
}

// bound ends the copying when the frozen time is up or the view has broken: what
// is read afterwards is worth nothing.
func (r *runner) bound(ctx context.Context, held view.Held) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	var timer *time.Timer
	if !r.unbounded() {
		timer = time.AfterFunc(time.Until(held.Since().Add(r.o.MaxFreeze)), func() { cancel(errTooMuch) })
	}
	if b, ok := held.(view.Breaker); ok {
		go func() {
			select {
			case <-b.Broken():
				cancel(view.ErrBroken)
			case <-ctx.Done():
			}
		}()
	}
	return ctx, func() {
		if timer != nil {
			timer.Stop()
		}
		cancel(nil)
	}
}

func (r *runner) explain(ctx context.Context, j *job, err error) error {
	if cause := context.Cause(ctx); cause != nil && ctx.Err() != nil {
		err = cause
	}
	return fmt.Errorf("%s: %w", j.Name, err)
}

// copyHeldJob reads the rest of one job into memory, so that the view is held no
// longer than reading takes; or, where that is too much, to the mirror.
func (r *runner) copyHeldJob(ctx context.Context, j *job, inMemory bool) (kept, error) {
	k := kept{job: j}
	if !inMemory {
		return k, r.copyJob(ctx, j, r.quietly(j.todo.Bytes()))
	}
	var mu sync.Mutex
	p := &pass{
		job: j, readers: r.o.Readers, blockSize: j.Store.State().BlockSize, limit: r.throttle,
		put: func(chunks []mirror.Chunk) error {
			for i := range chunks {
				chunks[i].Data = slices.Clone(chunks[i].Data)
			}
			mu.Lock()
			defer mu.Unlock()
			k.chunks = append(k.chunks, chunks...)
			return nil
		},
		done: func(batch, int64) {},
	}
	if err := p.run(ctx, j.todo); err != nil {
		return k, err
	}
	j.keep(&k)
	return k, nil
}

// quietly returns a progress that is told only where nobody waits for the view.
func (r *runner) quietly(total int64) func(int64) {
	done := int64(0)
	return func(bytes int64) {
		if done += bytes; r.o.Unheld {
			r.o.Progress(Event{Phase: "copy", Pass: 1, Done: done, Total: total})
		}
	}
}

// stoodStill asks the tracker whether anything was written since the epoch was
// closed, and the kernel whether the source is still as large.
func (j *job) stoodStill(ctx context.Context) error {
	if err := j.sameSize(); err != nil {
		return err
	}
	if !j.live() {
		return nil
	}
	changes, err := j.Tracker.Changes(ctx, j.cut, track.Mark(""))
	if err != nil {
		return j.lostTrack(err)
	}
	if !changes.Empty() {
		return fmt.Errorf("%w: %d bytes, the first at offset %d",
			ErrWrittenWhileHeld, changes.Bytes(), changes.Extents()[0].Off)
	}
	return nil
}

// storeKept hands what was read while the view was held to the mirrors.
func (r *runner) storeKept(all []kept) error {
	for _, k := range all {
		k.job.update.NextPass()
		for chunks := range slices.Chunk(k.chunks, batchExtents) {
			n, err := k.job.update.Put(chunks)
			k.job.written.Add(n)
			if err != nil {
				return fmt.Errorf("%s: %w", k.job.Target, err)
			}
		}
		if k.chunks != nil {
			k.job.passed(k.set)
		}
	}
	return nil
}
