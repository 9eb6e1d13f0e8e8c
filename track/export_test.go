package track

import "context"

// FlipHalf does the first n steps of a Cut and leaves it at that, as a process
// that dies then. It returns false when there are no more than n steps.
func (l *Live) FlipHalf(ctx context.Context, n int) (bool, error) {
	more := true
	err := l.withFlip(ctx, func() error {
		f := &flipping{s: l.s}
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

// Dir is where the state of the disk lives.
func (l *Live) Dir() string { return l.s.dir }

// Pins is where the pinned objects live.
func (l *Live) Pins() string { return l.s.pl.pins }
