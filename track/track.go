// Package track answers which blocks of a source changed between two moments.
//
// It owns the marks (names of moments), the epochs between them and their
// history; the kernel side is linux/bpf and linux/dmera. Backends: [Live] follows any block
// device with eBPF programs, [Scan] knows nothing and says so, which makes the
// caller compare content. A third, [Era], asks the metadata of a dm-era device,
// which outlives reboots.
//
// # The promise
//
// If the content of a block differs between the moments of two marks, the block
// is in Changes of them. Too many blocks are allowed, too few never. Whatever
// could break the promise (a reboot, another disk under the name, a resize, a
// command that went around the block layer, an event the kernel skipped, a
// device-mapper table that was replaced, a zram disk that was reset, missing or
// damaged state) makes Changes fail with [ErrMarkLost] and the reason in words.
//
// # Epochs and files
//
// The history of a disk is cut into epochs, numbered from 1; a mark names the
// beginning of one. Cut ends the current epoch. The bitmap of an ended epoch
// stays pinned in bpffs until Persist has written it as a file of package
// format/epochs. All state lives in two places that a reboot empties, so none
// of it is synced:
//
//	<BPFFS>/tidemark/v1/…                    programs, links, maps, bitmap_<generation>_<epoch>;
//	                                         v1-<hash> for another RunDir than the default
//	<RunDir>/track/lock                      taken to start and stop tracking
//	<RunDir>/track/<disk>/flip               taken to end an epoch
//	<RunDir>/track/<disk>/history            taken to change the files below
//	<RunDir>/track/<disk>/record.json        what is tracked, since when
//	<RunDir>/track/<disk>/leases.json        whose marks are kept
//	<RunDir>/track/<disk>/reader-<random>    an open Live: locked while it lives
//	<RunDir>/track/<disk>/<from>-<to>.changes
//
// Should RunDir outlive a reboot, the boot id in the record tells.
//
// What an Era remembers survives one, and is synced:
//
//	<StateDir>/era/<device>.json             what tells its metadata from any other
//
// A Live, an Era and a Scan may be used by several goroutines, and several processes
// may use one disk.
package track

import (
	"context"
	"errors"
	"fmt"

	"tidemark/extent"
)

// ErrMarkLost says that the changes since a mark cannot be told; see
// [LostError] for the reason.
var ErrMarkLost = errors.New("mark lost")

// LostError is the error of a mark that cannot be vouched for.
type LostError struct {
	Mark   Mark
	Reason string // in words, for the user
}

func (e *LostError) Error() string {
	if e.Mark == "" {
		return "track: " + ErrMarkLost.Error() + ": " + e.Reason
	}
	return fmt.Sprintf("track: mark %s: %s: %s", e.Mark, ErrMarkLost, e.Reason)
}

// Unwrap makes errors.Is(err, ErrMarkLost) true.
func (e *LostError) Unwrap() error { return ErrMarkLost }

// Cut is the outcome of ending an epoch.
type Cut struct {
	Mark Mark // this very moment
	// Doubt says that, since the previous Cut of this tracker value, completions
	// may have gone unseen: a block copied before this Cut while its write was
	// in flight may be missing in Changes. Who copied while the source was in
	// use must copy those blocks again.
	Doubt bool
}

// Tracker answers which blocks of one source changed.
type Tracker interface {
	// Kind names the backend: KindLive, KindEra or KindScan.
	Kind() string
	// Granularity is the size of a block in bytes.
	Granularity() int64
	// Cut ends the epoch; the mark it returns is that moment. It writes to no
	// file: it may be called while every filesystem is frozen.
	Cut(ctx context.Context) (Cut, error)
	// Changes returns the bytes of the source (of the partition, for one) that
	// changed between two marks; an empty until means now. It writes to no
	// file. The error wraps ErrMarkLost when the marks cannot be vouched for.
	Changes(ctx context.Context, since, until Mark) (extent.Set, error)
	// Traits tell what the tracker can do.
	Traits() Traits
	// Drain returns when every write that was queued before the call has ended. A
	// tracker without Traits.NeedsDrain returns at once.
	Drain(ctx context.Context) error
	// Persist gives back the memory that closed epochs hold. Not to be called
	// while a filesystem is frozen.
	Persist(ctx context.Context) error
	// Keep keeps the history since m for the owner, instead of since the
	// owner's mark before; an empty m ends the owner's claim. Not to be called
	// while a filesystem is frozen. With quiet the caller vouches that no write was in
	// flight on the source at m: completions missed later cannot spoil the mark.
	Keep(ctx context.Context, owner string, m Mark, quiet bool) error
	// Close lets go; tracking itself goes on.
	Close() error
}

// Traits say what a tracker can do.
type Traits struct {
	// NamesChanges says that Changes can tell less than everything, so that copying
	// while the source is in use saves work.
	NamesChanges bool
	// NeedsDrain says that the tracker does not see when a write ends. Who copies while
	// the source is in use calls Drain after Cut and before reading: a write that was
	// queued before Cut may not have reached the source, and is named by no later
	// Changes.
	NeedsDrain bool
}
