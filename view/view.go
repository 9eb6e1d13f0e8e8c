// Package view makes sources stand still while they are read.
//
// For most uses, call [Choose], which looks at the sources and says what it chose and
// why, and Take on the provider that it returns.
//
// The package owns the choice between freezing the filesystems on the sources and
// relying on nobody writing to them, the hooks around it, and the proof, at the end,
// that the sources did stand still. It refuses to call a source with a writable
// filesystem on it offline, or one whose holder cannot be seen, and to freeze where
// there is nothing to freeze.
//
// A Provider may be used for one view after another, from one goroutine at a time;
// each Take looks at the machine anew. A View may be closed from any goroutine. The
// program's main must call reexec.Main with fsfreeze.Watchdog first.
package view

import (
	"context"
	"errors"
	"io"
	"time"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/linux/fsfreeze"
)

// Errors that callers act on.
var (
	// ErrBroken says that a source did not stand still until Close.
	ErrBroken = errors.New("the source did not stand still")
	// ErrTimeUp says that a view was held until MaxFreeze was over. The error wraps
	// ErrBroken as well.
	ErrTimeUp = fsfreeze.ErrExpired
	// ErrMounted refuses an offline view of a source with a writable filesystem.
	ErrMounted = errors.New("a filesystem on the source is mounted read-write")
	// ErrNothingToFreeze refuses a frozen view of a source without a filesystem.
	ErrNothingToFreeze = errors.New("no writable filesystem is mounted from the source")
	// ErrUnseen refuses a source whose holder cannot be seen: the holder may be a
	// filesystem, whose writes would be missing in a copy.
	ErrUnseen = errors.New("held exclusively, and not by a filesystem, swap area or device that can be seen from here")
	// ErrHook says that a hook failed or did not end in time.
	ErrHook = errors.New("hook failed")
)

// Source is what is read; block.Device is one.
type Source interface {
	io.ReaderAt
	Size() int64                              // bytes, when it was opened
	CurrentSize() (int64, error)              // bytes, now
	Data(e extent.Extent) (extent.Set, error) // the parts of e that are not holes
}

// Traits say what a provider's views are like.
type Traits struct {
	// Stops says that users of the sources wait from Take until Close.
	Stops bool
	// Apart says that a view hands out other sources than the origins: a write to an
	// origin since the instant does it no harm. Without Apart such a write is an error.
	Apart bool
}

// Provider makes views of a fixed list of sources: all stand still together.
type Provider interface {
	// Kind is "freeze" or "offline".
	Kind() string
	// Traits tell what its views are like.
	Traits() Traits
	// Flush writes out what users of the sources hold in memory, so that it is copied
	// before the sources have to stand still. The sources stay in use.
	Flush(ctx context.Context) error
	// Take makes a view. It calls instant once, at the moment that the view is of,
	// while no write is in flight on any source: trackers end their epochs there.
	// instant may write to no file. Its error ends the view and is returned.
	Take(ctx context.Context, instant func(context.Context) error) (View, error)
}

// View is what all sources held at one instant. It must be closed.
type View interface {
	// Source returns what is to be read in place of source i: the origin while it is
	// frozen or unused, or another device.
	Source(i int) Source
	// Since is a moment from which the sources have stood still, before the instant.
	Since() time.Time
	// Broken is closed when the view is known to be of no more use, so that reading
	// from it can stop.
	Broken() <-chan struct{}
	// Close ends the view. The error wraps ErrBroken unless the sources stood still
	// from Since until the call, and ErrTimeUp where MaxFreeze ended it. A second call
	// returns the same.
	Close() (Report, error)
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
	// Sources are block devices or image files. They stay the caller's, and open for as
	// long as the provider is used. A path that leads to another device by now does
	// not matter.
	Sources []*block.Device
	// MaxFreeze bounds the time that filesystems are frozen; after it they thaw
	// and the view is broken. 0 is no bound: they thaw when the process ends.
	MaxFreeze time.Duration
	// Unseen allows an offline view of sources whose holder cannot be seen
	// (ErrUnseen): a program that uses the device raw, and pauses.
	Unseen bool
	// Hooks run before and after.
	Hooks Hooks
}
