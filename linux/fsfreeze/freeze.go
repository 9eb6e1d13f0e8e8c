package fsfreeze

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Sync flushes the filesystems to disk, so that a freeze after it is short. It returns
// as soon as ctx ends; the watchdog may then still be busy.
func (g *Guard) Sync(ctx context.Context) error {
	if err := g.order(order{cmd: cmdSync}); err != nil {
		return err
	}
	var first error
	for {
		r, err := g.next(ctx)
		if err != nil {
			return fmt.Errorf("fsfreeze: sync: %w", err)
		}
		if r.event == evSynced && r.errno != 0 && first == nil {
			first = stepError("sync", g.filesystems[r.index].Name, r.errno)
		}
		if r.event == evSyncEnd {
			return first
		}
	}
}

// Freeze freezes all filesystems, for at most limit from the moment when it begins
// (0: until Thaw). Filesystems of a kind that cannot be frozen are passed over and returned
// by name; after any other failure the watchdog thaws the rest, and the error wraps ErrBusy
// or that of the system call. When ctx ends first, Freeze returns at once, and a filesystem
// whose call is under way thaws as soon as that returns. Freeze may be called once.
func (g *Guard) Freeze(ctx context.Context, limit time.Duration) (passed []string, err error) {
	g.mu.Lock()
	g.began = time.Now()
	g.mu.Unlock()
	if err := g.order(order{cmdFreeze, max(limit, 0)}); err != nil {
		return nil, err
	}
	for {
		r, err := g.next(ctx)
		if err != nil {
			g.Abandon()
			return nil, fmt.Errorf("fsfreeze: freeze: %w", g.cause(err))
		}
		switch {
		case r.event == evStill:
			return passed, nil
		case r.event == evFrozen && r.errno == unix.EOPNOTSUPP:
			passed = append(passed, g.filesystems[r.index].Name)
		case r.event == evFrozen && r.errno != 0:
			g.Abandon()
			return nil, stepError("freeze", g.filesystems[r.index].Name, r.errno)
		case r.event == evExpired:
			g.Abandon()
			return nil, fmt.Errorf("fsfreeze: freeze: %w: not all frozen within %v", ErrBroken, limit)
		}
	}
}

// cause returns the error that the watchdog reported, if it did, instead of err.
func (g *Guard) cause(err error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err != nil {
		return g.err
	}
	return err
}

// Abandon tells the watchdog to thaw and end, without waiting for it: a call into
// the kernel may hold the watchdog up. It can be used instead of Thaw or Close.
func (g *Guard) Abandon() {
	// When the watchdog is gone, keep has thawed or is about to.
	_ = g.order(order{cmd: cmdThaw})
}

// Thaw thaws all filesystems and returns when that is done and the watchdog has ended.
// The error wraps ErrBroken when one of the filesystems was thawed before this call, by
// any program. A second call returns the same.
func (g *Guard) Thaw() error {
	g.Abandon()
	for waiting := true; waiting; {
		select {
		case <-g.done:
			waiting = false
		case <-time.After(thawPatience):
			// The watchdog may have been stopped. Otherwise only a call into the
			// kernel holds it up, and killing it would gain nothing.
			_ = g.process.Process.Signal(unix.SIGCONT)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

// Close thaws if need be, and waits for the watchdog to end. It is Thaw under the
// name that owners of resources expect.
func (g *Guard) Close() error { return g.Thaw() }

// Broken is closed when a freeze ends without Thaw having been called: the time was
// up, or the watchdog was killed. It is not closed when another program thaws; only
// Thaw can tell.
func (g *Guard) Broken() <-chan struct{} { return g.broken }

// Done is closed when nothing is frozen any more and the watchdog is gone.
func (g *Guard) Done() <-chan struct{} { return g.done }

// Still returns the moment when the last filesystem had been frozen.
func (g *Guard) Still() time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.still
}

// Frozen returns the time from before the first freeze until everything was thawed,
// or until now.
func (g *Guard) Frozen() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.began.IsZero():
		return 0
	case g.ended.IsZero():
		return time.Since(g.began)
	}
	return g.ended.Sub(g.began)
}

// Watchdog returns the process id of the watchdog.
func (g *Guard) Watchdog() int { return g.process.Process.Pid }
