package bpf

import (
	"context"
	"testing"
	"time"

	"tidemark/extent"
	"tidemark/linux/bpf"
	"tidemark/track"
)

// FlipHalf does the first n steps of a Cut and leaves it at that, as a process that dies
// then. It returns false when there are no more than n steps.
func (t *Tracker) FlipHalf(ctx context.Context, n int) (bool, error) {
	more := true
	err := t.s.withFlip(ctx, func() error {
		f := &flipping{s: t.s}
		defer f.close()
		steps := f.steps()
		more = n < len(steps)
		for _, step := range steps[:min(n, len(steps))] {
			if err := step(); err != nil {
				return err
			}
		}
		return nil
	})
	return more, err
}

// ChangesWhile is Changes from since until now; meanwhile is called between the moment
// that is asked for and the reading.
func (t *Tracker) ChangesWhile(ctx context.Context, since track.Mark, meanwhile func()) (extent.Set, error) {
	from, err := t.epochOf(since)
	if err != nil {
		return extent.Set{}, err
	}
	var cur *bpf.Bitmap
	if cur, err = t.s.openNow(ctx); err != nil {
		return extent.Set{}, err
	}
	defer cur.Close()
	meanwhile()
	return t.changesUntil(from, cur)
}

// Dir is where the state of the disk lives.
func (t *Tracker) Dir() string { return t.s.dir() }

// Pins is where the pinned objects live.
func (t *Tracker) Pins() string { return t.s.pl.pins }

// EditSaved moves the time of a saved record, and has it be of another disk where identity is given.
func EditSaved(t testing.TB, p Place, by time.Duration, identity string) {
	t.Helper()
	sv, lost, err := p.read()
	if err != nil || lost != "" {
		t.Fatal(lost, err)
	}
	sv.Time = sv.Time.Add(by)
	if identity != "" {
		sv.Identity = identity
	}
	if err := p.write(sv); err != nil {
		t.Fatal(err)
	}
}
