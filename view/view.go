// Package view makes sources stand still while they are read.
//
// It owns the choice between freezing the filesystems on the sources and relying
// on nobody writing to them, the hooks around it, and the proof, at the end, that
// the sources did stand still. It refuses to call a source with a writable
// filesystem on it offline, or one that somebody holds who cannot be seen, and to
// freeze where there is nothing to freeze.
//
// A Provider may be used for one view after another, from one goroutine at a time;
// each Hold looks at the machine anew. A Held may be released from any goroutine.
// The program's main must call fsfreeze.IsWatchdog first.
package view

import (
	"context"
	"errors"
	"time"
)

// Errors that callers act on.
var (
	// ErrBroken says that a source did not stand still until Release.
	ErrBroken = errors.New("the source did not stand still")
	// ErrMounted refuses an offline view of a source with a writable filesystem.
	ErrMounted = errors.New("a filesystem on the source is mounted read-write")
	// ErrNothingToFreeze refuses a frozen view of a source without a filesystem.
	ErrNothingToFreeze = errors.New("no writable filesystem is mounted from the source")
	// ErrUnseen refuses a source that somebody holds who cannot be seen: what holds
	// it may be a filesystem, whose writes would be missing in a copy.
	ErrUnseen = errors.New("held exclusively, and not by a filesystem, swap area or device that can be seen from here")
	// ErrHook says that a hook failed or did not end in time.
	ErrHook = errors.New("hook failed")
)

// Provider makes views of a fixed list of sources: all stand still together.
type Provider interface {
	// Kind is "freeze" or "offline".
	Kind() string
	// Hold makes the sources stand still, and returns once they do.
	Hold(ctx context.Context) (Held, error)
}

// Settler is a Provider that can write out beforehand what the users of the sources
// hold in memory, so that it is copied before the sources have to stand still.
type Settler interface {
	Provider
	// Settle writes it out; the sources stay in use.
	Settle(ctx context.Context) error
}

// Held is a view while it stands still.
type Held interface {
	// Since is a moment from which the sources have stood still.
	Since() time.Time
	// Release ends the view. It returns nil only when the sources stood still from
	// Since until the call, and otherwise an error wrapping ErrBroken. It must be
	// called; a second call returns the same.
	Release() error
}

// Breaker is a Held that can tell early that it is of no more use, so that copying
// from it can stop. All Helds of this package are.
type Breaker interface {
	Held
	// Broken is closed when the view is known to have ended before Release.
	Broken() <-chan struct{}
	// Report tells what was held; call it after Release.
	Report() Report
}

// Report is what a view did, for showing to people.
type Report struct {
	// Frozen is the time from the first freeze until the last thaw.
	Frozen time.Duration
	// Filesystems were frozen, in this order.
	Filesystems []string
	// Passed are writable filesystems on the sources that cannot be frozen (vfat);
	// the view is still proved by the writes that were counted.
	Passed []string
	// Swaps are swap areas in use on the sources; writes to them are not stopped.
	Swaps []string
	// PostHook is the error of the post-hook, wrapping ErrHook. The view itself is
	// not the worse for it.
	PostHook error
}

// Options say what to hold, and how. Sources alone are required.
type Options struct {
	// Sources are block devices or image files.
	Sources []string
	// MaxFreeze bounds the time that filesystems are frozen; after it they thaw
	// and the view is broken. 0 is no bound: they thaw when the process ends.
	MaxFreeze time.Duration
	// Unseen allows an offline view of sources that somebody holds who cannot be
	// seen (ErrUnseen): a program that uses the device raw, and pauses.
	Unseen bool
	// Hooks run before and after.
	Hooks Hooks
}
