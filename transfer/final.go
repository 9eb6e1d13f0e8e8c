package transfer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"tidemark/extent"
	"tidemark/view"
	"tidemark/words"
)

const (
	// MaxAttempts is how often a view is taken at most, when more was left than
	// expected and it had to be given up.
	MaxAttempts = 4
	// maxRounds is how often what was written since the instant is copied before the
	// view is given up.
	maxRounds = 5
)

// errTooMuch says that more was left at the instant than can be copied in the time:
// let go, copy while in use, and try again.
var errTooMuch = errors.New("too much is left")

// final copies the rest from a view. It returns again when the view had to be given up
// early and another round of copying may help.
func (r *runner) final(ctx context.Context, attempt int) (again bool, err error) {
	var late error // why another view is taken now
	if rest := r.restBytes(); r.bounded() && r.speed.time(rest) > r.o.MaxFreeze {
		if late = r.tooMuch(rest); !r.giveWay(late) {
			return false, late
		}
	}
	r.o.Progress(Event{Phase: "freeze"})
	v, err := r.o.View.Take(ctx, r.instant)
	if err != nil {
		if late != nil {
			err = fmt.Errorf("%w; and no snapshot can be taken: %w", late, err)
		}
		return false, err
	}
	h := &held{room: r.o.HoldBytes}
	r.waited = r.traits.Stops
	err = r.copyView(ctx, v, h)
	report, closeErr := v.Close()
	r.waited = false
	r.frozen += report.Frozen
	r.postHook = report.PostHook
	switch {
	case err != nil && !errors.Is(err, view.ErrBroken):
	case errors.Is(closeErr, view.ErrTimeUp) && r.bounded():
		err = errTooMuch
	case closeErr != nil:
		err = closeErr
	}
	if err == nil {
		err = h.store()
	} else {
		h.giveBack()
	}
	if errors.Is(err, errTooMuch) || errors.Is(err, ErrWrittenWhileHeld) {
		if attempt < MaxAttempts && ctx.Err() == nil {
			return true, nil
		}
		if errors.Is(err, errTooMuch) {
			err = fmt.Errorf("%w, after %d attempts", ErrNotConverging, attempt)
		}
	}
	again = errors.Is(err, ErrNotConverging) && ctx.Err() == nil && r.giveWay(err)
	if again {
		err = nil
	}
	return again, err
}

// giveWay takes the view that nobody has to wait for from here on, if there is one.
func (r *runner) giveWay(why error) bool {
	if r.o.Apart == nil {
		return false
	}
	r.o.View, r.o.Apart = r.o.Apart, nil
	r.traits = r.o.View.Traits()
	for _, j := range r.jobs {
		j.report.View = r.o.View.Kind()
	}
	r.o.Progress(Event{Text: fmt.Sprintf("view: %s in place of a freeze: %v", r.o.View.Kind(), why)})
	return true
}

// tooMuch says why rest bytes cannot be copied while users wait.
func (r *runner) tooMuch(rest int64) error {
	text := fmt.Sprintf("%s would take %v at %s, allowed are %v",
		words.Size(rest), r.speed.time(rest).Round(time.Millisecond), &r.speed, r.o.MaxFreeze)
	for _, j := range r.jobs {
		if j.traits.NamesChanges {
			continue
		}
		if j.Untracked != "" {
			return fmt.Errorf("%s: %w (%s), and all of it has to be read while it is frozen: %s", j.Name, ErrUntracked, j.Untracked, text)
		}
		return fmt.Errorf("%s: %w, and all of it has to be read while it is frozen: %s", j.Name, ErrUntracked, text)
	}
	return fmt.Errorf("%w: %s", ErrNotConverging, text)
}

// instant ends the epoch of every job: the marks are of this moment.
func (r *runner) instant(ctx context.Context) error {
	for _, j := range r.jobs {
		if err := j.endEpoch(ctx); err != nil {
			return fmt.Errorf("%s: %w", j.Name, err)
		}
	}
	return nil
}

// bounded reports whether MaxFreeze limits the time that the view may take.
func (r *runner) bounded() bool { return r.traits.Stops && !r.o.ForceFreeze }

// restBytes returns what is to be copied from the view, as far as known.
func (r *runner) restBytes() int64 {
	var n int64
	for _, j := range r.jobs {
		n += j.todo.Bytes()
	}
	return n
}

// copyView reads the rest from the view and, where it is the sources themselves that
// are read, makes sure that nobody has written to them since the instant. While users
// wait nothing is written to a filesystem that is frozen, and nothing is told.
func (r *runner) copyView(ctx context.Context, v view.View, h *held) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-v.Broken():
			cancel(view.ErrBroken)
		case <-ctx.Done():
		}
	}()
	for round := 1; ; round++ {
		if err := r.copyRound(ctx, v, h); err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return err
		}
		if r.traits.Apart {
			return nil
		}
		err := r.stoodStill(ctx)
		if !errors.Is(err, ErrWrittenWhileHeld) || len(r.liveJobs()) < len(r.jobs) || round == maxRounds {
			return err
		}
		// A frozen XFS or Btrfs may still discard free space that it had promised
		// to discard before (xfs_discard.c, btrfs/discard.c). That ends by itself;
		// the instant is then a little later.
		if err := r.instant(ctx); err != nil {
			return err
		}
	}
}

// copyRound copies what changed until the epochs were ended.
func (r *runner) copyRound(ctx context.Context, v view.View, h *held) error {
	for _, j := range r.jobs {
		if err := j.gather(ctx); err != nil {
			return fmt.Errorf("%s: %w", j.Name, err)
		}
	}
	rest := r.restBytes()
	if left := r.o.MaxFreeze - time.Since(v.Since()); r.bounded() && r.speed.time(rest) > left {
		return errTooMuch
	}
	copyJob := r.copyAside
	if r.traits.Stops && rest <= h.room {
		copyJob = h.read
	} else if err := r.unload(h, rest); err != nil {
		return err
	}
	for _, j := range r.jobs {
		if err := copyJob(ctx, r, j, v.Source(j.index)); err != nil {
			return fmt.Errorf("%s: %w", j.Name, err)
		}
	}
	return nil
}

// unload stores what is held, which is older than the rest bytes that are to be copied
// past memory. A sink on a frozen filesystem cannot be written to: nobody would ever
// thaw it.
func (r *runner) unload(h *held, rest int64) error {
	for _, j := range r.jobs {
		if r.traits.Stops && j.Freezes {
			return fmt.Errorf("%s: the target lies on a filesystem that is frozen, and %d bytes are too many to keep in memory: %w",
				j.Target, rest, ErrNotConverging)
		}
	}
	return h.store()
}

// copyAside copies from the view to the sink, and tells how far it is unless users wait.
func (*runner) copyAside(ctx context.Context, r *runner, j *job, from Source) error {
	total, done := j.todo.Bytes(), int64(0)
	return r.copyJob(ctx, j, from, func(bytes int64) {
		if done += bytes; !r.waited {
			r.o.Progress(Event{Phase: "copy", Pass: 1, Done: done, Total: total})
		}
	})
}

func (r *runner) stoodStill(ctx context.Context) error {
	for _, j := range r.jobs {
		if err := j.stoodStill(ctx); err != nil {
			return fmt.Errorf("%s: %w", j.Name, err)
		}
	}
	return nil
}

// stoodStill asks the tracker whether anything was written since the instant, and the
// kernel whether the source is still as large.
func (j *job) stoodStill(ctx context.Context) error {
	if err := j.sameSize(); err != nil {
		return err
	}
	if !j.traits.NamesChanges {
		return nil
	}
	changes, err := j.Tracker.Changes(ctx, j.cut, "")
	if err != nil {
		return j.lostTrack(err)
	}
	if !changes.Empty() {
		return fmt.Errorf("%w: %d bytes, the first at offset %d",
			ErrWrittenWhileHeld, changes.Bytes(), changes.Extents()[0].Off)
	}
	return nil
}

// held is what was read while users waited, and is not in the sinks yet. All rounds
// together hold no more than room was in the beginning.
type held struct {
	room  int64 // bytes that may be read still
	parts []heldPart
}

// heldPart is what one round read for one job.
type heldPart struct {
	job    *job
	set    extent.Set
	chunks []Chunk
}

// read reads what a job has to copy into memory, so that users wait no longer than
// reading takes: neither checksums nor copies are made.
func (h *held) read(ctx context.Context, r *runner, j *job, from Source) error {
	part := heldPart{job: j, set: j.todo}
	var mu sync.Mutex
	p := &pass{
		source: from, readers: r.o.Readers, blockSize: j.have.Block, keep: true,
		limit: func(context.Context, int) error { return nil },
		put: func(chunks []Chunk) error {
			mu.Lock()
			defer mu.Unlock()
			part.chunks = append(part.chunks, chunks...)
			return nil
		},
		done: func(batch, int64) {},
	}
	err := p.run(ctx, j.todo)
	j.report.Read += p.read.Load()
	if err != nil {
		return err
	}
	h.room -= part.set.Bytes()
	j.todo, j.copied = extent.Set{}, j.copied.Union(part.set)
	h.parts = append(h.parts, part)
	return nil
}

// store hands what is held to the sinks, the older rounds first.
func (h *held) store() error {
	for _, part := range h.parts {
		part.job.txn.NextPass()
		for chunks := range slices.Chunk(part.chunks, batchExtents) {
			if err := part.job.put(chunks); err != nil {
				return fmt.Errorf("%s: %w", part.job.Target, err)
			}
		}
		part.job.report.Passes++
		part.job.filled = true
	}
	h.parts = nil
	return nil
}

// giveBack makes what is held something to copy again.
func (h *held) giveBack() {
	for _, part := range h.parts {
		part.job.todo = part.job.todo.Union(part.set)
	}
}
