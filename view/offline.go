package view

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"tidemark/linux/sysfs"
)

// Offline returns a provider that stops nobody: it looks at what the kernel counts
// before and after, and says when a source was written to. Take refuses sources
// with a writable filesystem on them (ErrMounted), sources whose holder cannot be
// seen (ErrUnseen, unless Options allow it), devices whose writes the kernel does not
// count, and devices on which writes are always in flight.
func Offline(o Options) Provider { return offline{o} }

type offline struct{ o Options }

func (offline) Kind() string { return "offline" }

func (offline) Traits() Traits { return Traits{} }

// Flush implements Provider: nobody uses the sources.
func (offline) Flush(context.Context) error { return nil }

func (p offline) Take(ctx context.Context, instant func(context.Context) error) (View, error) {
	if err := p.refuse(ctx); err != nil {
		return nil, err
	}
	return take(ctx, p.o, p.hold, instant)
}

// refuse looks for programs that may write to the sources.
func (p offline) refuse(ctx context.Context) error {
	s, err := look(p.o.Sources)
	if err != nil {
		return err
	}
	if w := s.writable(); len(w) > 0 {
		return fmt.Errorf("view: offline: %w: %s", ErrMounted, w[0])
	}
	if p.o.Unseen {
		return nil
	}
	return refuseUnseen(s.unseen(ctx))
}

func (p offline) hold(ctx context.Context) (*held, error) {
	s, err := look(p.o.Sources)
	if err != nil {
		return nil, err
	}
	c, err := openCaches(s.table, s.roots())
	if err != nil {
		return nil, fmt.Errorf("view: offline: %w", err)
	}
	defer c.close()
	if err := c.write(); err != nil {
		return nil, fmt.Errorf("view: offline: %w", err)
	}
	h := &held{report: Report{Swaps: s.swaps}, broken: make(chan struct{})}
	for _, src := range s.sources {
		w, err := watchOffline(ctx, src)
		if err != nil {
			return nil, fmt.Errorf("view: offline: %s: %w", src.Path(), err)
		}
		h.watches = append(h.watches, w)
	}
	// One mounted since the first look has the chance to be seen now; a later one
	// is told by its writes.
	if err := p.refuse(ctx); err != nil {
		return nil, err
	}
	h.since = time.Now()
	return h, nil
}

// watchOffline remembers the state of a source that nobody should write to.
func watchOffline(ctx context.Context, s source) (watch, error) {
	if !s.IsDevice() {
		if err := outlast(ctx, s); err != nil {
			return nil, err
		}
		return watchFile(s)
	}
	if err := idle(ctx, s.dev()); err != nil {
		return nil, err
	}
	counted, err := watchDevice(s, true)
	if err != nil {
		return nil, err
	}
	return watchIdle(s, counted), nil
}

// What the kernel counts as written is counted when a write ends. So nothing may be
// in flight before the first look at the counters, nor before the last: a write that
// was in flight all the time would not show.
const (
	idleLimit = 5 * time.Second
	idlePoll  = time.Millisecond
)

// idle waits until no write is in flight.
func idle(ctx context.Context, dev sysfs.Dev) error {
	limit := time.NewTimer(idleLimit)
	defer limit.Stop()
	for {
		n, err := sysfs.WritesInFlight(dev.Dir())
		if n == 0 || err != nil {
			return err
		}
		select {
		case <-time.After(idlePoll):
		case <-limit.C:
			return fmt.Errorf("%w: writes are always in flight (%d now): stop whoever writes to it", ErrBroken, n)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// watchIdle tells of a write that is in flight, and otherwise what counted tells.
func watchIdle(s source, counted watch) watch {
	return func() (string, error) {
		n, err := sysfs.WritesInFlight(s.dev().Dir())
		if err != nil {
			return "", err
		}
		if n > 0 {
			return fmt.Sprintf("%s: %d writes are in flight", s.Path(), n), nil
		}
		return counted()
	}
}

// outlast waits until a further write to an image would get another time stamp.
func outlast(ctx context.Context, s source) error {
	for {
		st, err := stateOf(s.name())
		if err != nil {
			return err
		}
		left := st.fresh(time.Now())
		if left <= 0 {
			return nil
		}
		select {
		case <-time.After(left):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// A watch tells what has changed on a source since it was made; "" is nothing.
type watch func() (changed string, err error)

// watchDevice looks at written sectors, and at discarded ones where those count:
// a filesystem may have discards of free space under way when it is frozen.
func watchDevice(s source, discards bool) (watch, error) {
	before, err := s.Counters()
	if err != nil {
		return nil, err
	}
	return func() (string, error) {
		after, err := s.Counters()
		if err != nil {
			return "", err
		}
		var words []string
		if n := after.Written - before.Written; n != 0 {
			words = append(words, fmt.Sprintf("%d sectors were written", n))
		}
		if n := after.Discarded - before.Discarded; n != 0 && discards {
			words = append(words, fmt.Sprintf("%d sectors were discarded", n))
		}
		if len(words) == 0 {
			return "", nil
		}
		return s.Path() + ": " + strings.Join(words, ", "), nil
	}, nil
}

// watchFile compares the image that is open with what its path leads to later.
func watchFile(s source) (watch, error) {
	path := s.Path()
	before, err := stateOf(s.name())
	if err != nil {
		return nil, err
	}
	return func() (string, error) {
		after, err := stateOf(path)
		switch {
		case errors.Is(err, os.ErrNotExist):
			return path + ": removed", nil
		case err != nil:
			return "", err
		case after.dev != before.dev || after.ino != before.ino:
			return path + ": replaced by another file", nil
		case after.size != before.size:
			return fmt.Sprintf("%s: size changed from %d to %d", path, before.size, after.size), nil
		case after != before:
			return path + ": written to", nil
		}
		return "", nil
	}, nil
}
