package view

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"tidemark/block"
	"tidemark/linux/fsfreeze"
)

// held is a view of either kind: the sources themselves are read.
type held struct {
	sources []*block.Device
	since   time.Time
	watches []watch
	guard   *fsfreeze.Guard // nil when offline
	scene   *scene          // what was frozen; nil when offline
	broken  chan struct{}   // never closed when offline
	post    func() error

	once   sync.Once
	err    error
	report Report
}

func (h *held) Source(i int) Source { return h.sources[i] }

func (h *held) Since() time.Time { return h.since }

func (h *held) Broken() <-chan struct{} {
	if h.guard != nil {
		return h.guard.Broken()
	}
	return h.broken
}

func (h *held) Close() (Report, error) {
	h.once.Do(func() { h.err = h.close() })
	return h.report, h.err
}

// close looks for changes first, while everything still has to stand still.
func (h *held) close() error {
	err := h.changes()
	if h.guard != nil {
		if thawErr := h.guard.Thaw(); thawErr != nil {
			err = errors.Join(err, fmt.Errorf("%w: %w", ErrBroken, thawErr))
		}
		h.report.Frozen = h.guard.Frozen()
	}
	if h.post != nil {
		h.report.PostHook = h.post()
	}
	if err != nil {
		return fmt.Errorf("view: %w", err)
	}
	return nil
}

func (h *held) changes() error {
	var errs []error
	for _, w := range h.watches {
		changed, err := w()
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("%w: it cannot be told: %w", ErrBroken, err))
		case changed != "":
			errs = append(errs, fmt.Errorf("%w: %s", ErrBroken, changed))
		}
	}
	return errors.Join(errs...)
}

// take runs the pre-hook, makes the sources stand still, and calls instant. The
// post-hook runs whatever happens after the pre-hook was started.
func take(ctx context.Context, o Options, hold func(context.Context) (*held, error), instant func(context.Context) error) (View, error) {
	said, err := o.Hooks.RunPre(ctx, pathsOf(o.Sources))
	post := func() error { return o.after(ctx, said) }
	if err != nil {
		return nil, errors.Join(err, post())
	}
	h, err := hold(ctx)
	if err != nil {
		return nil, errors.Join(err, post())
	}
	h.post, h.sources = post, o.Sources
	if err := instant(ctx); err != nil {
		report, closeErr := h.Close()
		return nil, errors.Join(err, closeErr, report.PostHook)
	}
	return h, nil
}

// after runs the post-hook, and then tells what both hooks said.
func (o Options) after(ctx context.Context, pre string) error {
	post, err := o.Hooks.RunPost(ctx, pathsOf(o.Sources))
	o.Hooks.tell("pre-hook", pre)
	o.Hooks.tell("post-hook", post)
	return err
}

func pathsOf(sources []*block.Device) []string {
	var paths []string
	for _, s := range sources {
		paths = append(paths, s.Path())
	}
	return paths
}
