package view

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"tidemark/block"
	"tidemark/linux/fsfreeze"
	"tidemark/linux/mounts"
)

// Freeze returns a provider that freezes every filesystem on the sources, and then
// writes out the page caches of the sources and of all devices above them. Errors of
// Take wrap ErrNothingToFreeze, ErrHook, fsfreeze.ErrBusy when another program has
// frozen one, fsfreeze.ErrBroken when freezing alone took longer than allowed, or
// fsfreeze.ErrNoWatchdog.
func Freeze(o Options) Provider { return freezer{o} }

type freezer struct{ o Options }

func (freezer) Kind() string { return "freeze" }

func (freezer) Traits() Traits { return Traits{Stops: true} }

func (p freezer) Take(ctx context.Context, instant func(context.Context) error) (View, error) {
	s, err := look(p.o.Sources)
	if err != nil {
		return nil, err
	}
	if len(s.writable()) == 0 {
		return nil, fmt.Errorf("view: freeze: %w", ErrNothingToFreeze)
	}
	if p.o.Hooks.Pre != "" {
		// What is quiesced by the hook should not have to wait for old data.
		if err := s.flush(ctx); err != nil {
			return nil, err
		}
	}
	return take(ctx, p.o, p.hold, instant)
}

// Flush implements Provider.
func (p freezer) Flush(ctx context.Context) error {
	s, err := look(p.o.Sources)
	if err != nil {
		return err
	}
	if err := s.flush(ctx); err != nil {
		return fmt.Errorf("view: %w", err)
	}
	return nil
}

// flush writes out what filesystems and page caches hold, without freezing anything.
func (s *scene) flush(ctx context.Context) error {
	c, err := openCaches(s.table, s.roots())
	if err != nil {
		return err
	}
	defer c.close()
	g, err := arm(ctx, s)
	if err != nil {
		return err
	}
	if err := errors.Join(g.Sync(ctx), closeUnlessDone(ctx, g)); err != nil {
		return err
	}
	return c.write()
}

// closeUnlessDone waits for the watchdog to end, but not when ctx has: it may be
// stuck in a long write, and ends by itself.
func closeUnlessDone(ctx context.Context, g *fsfreeze.Guard) error {
	if ctx.Err() != nil {
		g.Abandon()
		return nil
	}
	return g.Close()
}

// freezeTries is how often it starts over when a filesystem was mounted just then.
const freezeTries = 3

func (p freezer) hold(ctx context.Context) (*held, error) {
	for range freezeTries {
		s, err := look(p.o.Sources)
		if err != nil {
			return nil, err
		}
		h, err := p.freezePatiently(ctx, s)
		if err != nil {
			return nil, fmt.Errorf("view: %w", err)
		}
		missed, err := h.missed(p.o.Sources)
		if err == nil && missed == "" {
			return h, nil
		}
		err = errors.Join(err, h.guard.Close())
		if err != nil {
			return nil, fmt.Errorf("view: %w", err)
		}
	}
	return nil, errors.New("view: freeze: filesystems on the source are mounted all the time")
}

// busyWait is how long somebody else's freeze is waited for: another run that
// mirrors the same source is done in less.
const busyWait = 3 * time.Second

// freezePatiently tries again while somebody else has frozen a filesystem.
func (p freezer) freezePatiently(ctx context.Context, s *scene) (*held, error) {
	patience := time.NewTimer(busyWait)
	defer patience.Stop()
	again := time.NewTicker(busyWait / 30)
	defer again.Stop()
	for {
		h, err := p.freeze(ctx, s)
		if !errors.Is(err, fsfreeze.ErrBusy) {
			return h, err
		}
		select {
		case <-again.C:
		case <-patience.C:
			return nil, err
		case <-ctx.Done():
			return nil, errors.Join(err, context.Cause(ctx))
		}
	}
}

func (p freezer) freeze(ctx context.Context, s *scene) (*held, error) {
	c, err := openCaches(s.table, s.roots())
	if err != nil {
		return nil, err
	}
	defer c.close()
	g, err := arm(ctx, s)
	if err != nil {
		return nil, err
	}
	h, err := p.freezeWith(ctx, g, s, c)
	if err != nil {
		return nil, errors.Join(err, closeUnlessDone(ctx, g))
	}
	return h, nil
}

func (p freezer) freezeWith(ctx context.Context, g *fsfreeze.Guard, s *scene, c caches) (*held, error) {
	// What is written out now need not be while the filesystems are frozen.
	if err := errors.Join(g.Sync(ctx), c.write()); err != nil {
		return nil, err
	}
	passed, err := g.Freeze(ctx, p.o.MaxFreeze)
	if err != nil {
		return nil, err
	}
	if err := c.write(); err != nil {
		return nil, err
	}
	h := &held{guard: g, scene: s, since: g.Still(), report: Report{Swaps: s.swaps}}
	frozen := 0
	for _, f := range s.filesystems {
		switch {
		case !slices.Contains(passed, f.String()):
			h.report.Filesystems = append(h.report.Filesystems, f.String())
			if !f.ReadOnly {
				frozen++
			}
		case !f.ReadOnly:
			h.report.Passed = append(h.report.Passed, f.String())
		}
	}
	if frozen == 0 {
		return nil, fmt.Errorf("freeze: %w: %s", fsfreeze.ErrNotSupported, h.report.Passed[0])
	}
	h.watches, err = watchFrozen(s)
	return h, err
}

// watchFrozen counts what is written to the sources although they are frozen. A
// source that swap lies on, or whose writes are not counted, is left to others.
func watchFrozen(s *scene) ([]watch, error) {
	var watches []watch
	for _, src := range s.sources {
		var w watch
		var err error
		switch {
		case !src.IsDevice():
			w, err = watchFile(src)
		case src.swapped:
			continue
		default:
			w, err = watchDevice(src, false)
		}
		if errors.Is(err, block.ErrNoCounters) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("freeze: %s: %w", src.Path(), err)
		}
		watches = append(watches, w)
	}
	return watches, nil
}

// missed names a filesystem that was mounted, or made writable, between looking
// and freezing.
func (h *held) missed(sources []*block.Device) (string, error) {
	now, err := look(sources)
	if err != nil {
		return "", err
	}
	for _, f := range now.writable() {
		if !slices.ContainsFunc(h.scene.filesystems, func(o mounts.Filesystem) bool { return o.Dev == f.Dev }) {
			return f.String(), nil
		}
	}
	return "", nil
}

// arm opens the filesystems and starts the watchdog over them.
func arm(ctx context.Context, s *scene) (*fsfreeze.Guard, error) {
	var list []fsfreeze.Filesystem
	for _, f := range s.filesystems {
		dir, err := s.table.Open(f)
		if err != nil {
			for _, o := range list {
				o.Dir.Close()
			}
			return nil, err
		}
		list = append(list, fsfreeze.Filesystem{Name: f.String(), Dir: dir})
	}
	return fsfreeze.Arm(ctx, list)
}
