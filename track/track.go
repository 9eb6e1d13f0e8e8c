// Package track answers one question: which blocks of a source changed between two
// moments?
//
// For most uses, open a backend ([tidemark/track/bpf] for any block device,
// [tidemark/track/era] for a dm-era device, [NewScan] for everything else), call Cut
// at the moment of a copy, and store its mark with the copy. The next time, Changes
// since that mark is all that has to be read.
//
// This package owns the interface [Tracker], the marks and the errors, and the one
// backend that needs nothing from the kernel. It links no kernel package. A Tracker
// may be used by several goroutines, and several processes may track one source.
//
// # The promise
//
// If the content of a block differs between the moments of two marks, the block is in
// Changes of them. Too many blocks are allowed, too few never. Whatever could break
// the promise (a reboot, another disk under the name, a resize, an event that the
// kernel skipped, damaged state) makes Changes fail with [ErrMarkLost] and the reason
// in words. The caller then takes everything as changed.
package track

import (
	"context"
	"errors"
	"fmt"

	"tidemark/extent"
)

// ErrMarkLost says that the changes since a mark cannot be told; see [LostError] for
// the reason.
var ErrMarkLost = errors.New("mark lost")

// LostError is the error of a mark that a tracker cannot vouch for.
type LostError struct {
	Mark   Mark   // "" for every mark of the tracker
	Reason string // in words, for the user
}

// Lost returns a LostError of no mark in particular, with the reason as fmt.Sprintf
// makes it.
func Lost(format string, args ...any) *LostError {
	return &LostError{Reason: fmt.Sprintf(format, args...)}
}

func (e *LostError) Error() string {
	if e.Mark == "" {
		return "track: " + ErrMarkLost.Error() + ": " + e.Reason
	}
	return fmt.Sprintf("track: mark %s: %s: %s", e.Mark, ErrMarkLost, e.Reason)
}

// Unwrap makes errors.Is(err, ErrMarkLost) true.
func (e *LostError) Unwrap() error { return ErrMarkLost }

// About returns err as the error of the mark m when it is a LostError, else unchanged.
func About(m Mark, err error) error {
	if lost := (*LostError)(nil); errors.As(err, &lost) {
		return &LostError{Mark: m, Reason: lost.Reason}
	}
	return err
}

// Traits are what a kind of tracker can do.
type Traits struct {
	// NamesChanges: Changes can name less than the whole source. Copying while the
	// source is in use then saves work later.
	NamesChanges bool
	// NeedsDrain: the tracker does not see when a write ends. A caller that copies
	// while the source is in use must call Drain after Cut and before reading.
	NeedsDrain bool
	// OnlyAtInstant: a cut is made by the view, at its instant, and at no other time. A caller
	// cannot copy while the source is in use, and needs a view that stops nobody.
	OnlyAtInstant bool
}

// Cut is the outcome of ending an epoch.
type Cut struct {
	Mark Mark // this very moment
	// Doubt says that completions may have gone unseen since the previous Cut of
	// this tracker value. A block that was copied before this Cut, while its write
	// was in flight, may be missing in Changes: the caller must copy again what it
	// has copied while the source was in use.
	Doubt bool
}

// Tracker answers which blocks of one source changed.
type Tracker interface {
	// Kind names the backend, as its marks do.
	Kind() string
	// Granularity is the size of a block in bytes.
	Granularity() int64
	// Traits tells what the backend can do. It does not change.
	Traits() Traits
	// Cut ends the epoch; the mark it returns is that moment. It writes to no file,
	// so it may be called while every filesystem is frozen. The error wraps
	// ErrMarkLost when tracking cannot go on.
	Cut(ctx context.Context) (Cut, error)
	// Changes returns the bytes of the source that changed between two marks, as
	// offsets within the source. An empty since means all bytes, an empty until
	// means now. It writes to no file. The error wraps ErrMarkLost when the tracker
	// cannot vouch for the marks, ErrBadMark when a text is no mark.
	Changes(ctx context.Context, since, until Mark) (extent.Set, error)
	// Vouch returns nil when Changes since m could be told now; otherwise the error
	// is that of Changes. It computes no changes and starts nothing.
	Vouch(ctx context.Context, m Mark) error
	// Drain returns when every write that was queued before the call has ended. A
	// tracker without NeedsDrain returns nil at once. It must not be called while a
	// filesystem on the source is frozen.
	Drain(ctx context.Context) error
	// Persist gives back the memory that closed epochs hold. It must not be called
	// while a filesystem is frozen.
	Persist(ctx context.Context) error
	// Keep keeps the history since m for the owner, in place of the owner's mark
	// before; an empty m ends the owner's claim. With quiet the caller vouches that
	// no write was in flight on the source at m, so that completions missed later
	// cannot spoil the mark. It must not be called while a filesystem is frozen. The
	// error wraps ErrMarkLost when m is lost already.
	Keep(ctx context.Context, owner string, m Mark, quiet bool) error
	// Close lets go of the source; tracking itself goes on.
	Close() error
}
