// Package dmera sets up, questions and takes apart dm-era devices: device-mapper
// devices that remember in which era each of their blocks was last written.
//
// It owns the "era" target's table, status line and messages, the activation of a
// device with discards switched off, and the ownership of the one metadata
// snapshot that a device can hold. The metadata's format is package format/era's,
// the ioctls are package linux/dm's. It refuses metadata and data that are in use,
// lie on one another, or are too small, and anything that is not one whole era
// target. A Device and a Snapshot are each used by one goroutine at a time.
//
// # Eras
//
// Read in drivers/md/dm-era-target.c of Linux 6.1 to 6.12, and seen in both.
//
// A device has a current era, a number, and the current writeset, a bit for each
// block. A write to a block whose bit is not set waits until the bit is set, is in
// the metadata, and the metadata is flushed; then it goes down. Later writes to
// that block in the same era pass at once. So at every moment, and after every
// power cut, the metadata on the disk names each block that a write may have
// reached.
//
// A checkpoint, a metadata snapshot and a resume end the era: the current writeset
// is put away under the era's number, the number grows by one, and the new
// writeset is empty. All three are in the metadata on the disk before the call
// returns, so a number that was told is never used again. The kernel waits for the
// writes that are just looking at the old writeset: a write is counted in an era
// before the change or in one after it, never in none.
//
// # What a snapshot tells
//
// TakeSnapshot at a moment T ends era E-1 and begins era E, which is
// [Snapshot.Era]. The snapshot has all of the eras up to E-1, and stays as it is
// while the device is written to. "Changed since S" are the blocks with a write
// counted in an era from S to E-1: each block that was written to after S began
// and before T.
//
// # Which era to keep as the mark
//
// A write is counted when it is given to the device, not when it is through. One
// that is on its way at T is counted before E, and a copy that reads its block
// right after T may read what was there before it. Asking since E the next time
// would not name it again. So:
//
//   - When nothing is on its way at T, because the filesystem is frozen or nobody
//     has the device open, keep E.
//   - Otherwise call Drain first, then TakeSnapshot, and keep the era D that Drain
//     returned; D < E. Drain waits for the writes that are on their way, and holds
//     new ones back meanwhile: each write counted in an era before D has reached
//     the data before Drain returns, and a copy made after it has them. What was
//     written between Drain and the snapshot is named twice.
//
// Keep the mark with the Identity of the metadata. A mark above the era of a
// snapshot is not of this metadata, or the metadata was put back from a copy.
//
// # Restarts and power cuts
//
// A device that is closed or suspended puts its current writeset away. After a
// power cut the current writeset is in the superblock as it was last written, with
// each write that can have reached the data, and the kernel puts it away at the
// next activation (since 5.12, and 4.4 to 5.11 with the stable fixes of March
// 2021; before, it was thrown away). Each activation costs one era. So marks
// outlive both; what they cannot see is a write to the data device while the era
// device is not there, or past it. NotePast is for who sees that, also while the
// metadata is not there either.
//
// A held snapshot outlives both as well.
//
// # What dm-era does not see
//
//   - A discard marks the first block that it touches, and no other. Create and
//     Activate therefore switch discards off before the device is announced and
//     while nobody else can mount it, Resize while the device is held; Status tells
//     whether they are off, and how many there were since the activation, and
//     NoteGaps from which era on there were none.
//   - Blocks that a device has grown by have era 0, as if written never: whoever
//     copies adds them.
//   - When no more bits can be stored, for the metadata is full, writes fail; they
//     are not lost from the list.
//
// # Suspended devices
//
// The kernel answers status and messages of an era device only while it is
// resumed, and lets everybody wait otherwise. They fail with ErrSuspended here.
package dmera

import (
	"errors"

	"tidemark/linux/dm"
)

// Errors that callers act on.
var (
	// ErrNotEra says that a device is no device-mapper device, or not one of
	// exactly one target of type "era".
	ErrNotEra = errors.New("not an era device")
	// ErrHeld says that a metadata snapshot is held by a process that lives, or by
	// a program that is not ours.
	ErrHeld = errors.New("a metadata snapshot is held")
	// ErrSuspended says that a device is suspended.
	ErrSuspended = errors.New("the era device is suspended")
	// ErrRefused says that a device was not made, opened or changed, because data
	// could be lost. Nothing was written.
	ErrRefused = errors.New("refused")
	// ErrHasMetadata says that a metadata device holds the metadata of an era device
	// already, ErrNotEmpty that it holds something else. Both come with ErrRefused.
	ErrHasMetadata = errors.New("it holds the metadata of an era device")
	ErrNotEmpty    = errors.New("it is not empty")
	// ErrFuture says that an era has not begun: it is not of this metadata.
	ErrFuture = errors.New("the era has not begun yet")
	// ErrDiscards says that the device took discards, so that the list of what
	// changed is not complete.
	ErrDiscards = errors.New("discards were let through")
	// ErrPast says that the data device may have been written to while the era
	// device was not up, so that the list of what changed is not complete.
	ErrPast = errors.New("its data was in use while the era device was not up")
	// ErrFailed says that the kernel cannot read or write the metadata any more,
	// or that it is full.
	ErrFailed = errors.New("the kernel's dm-era has failed on the metadata")
)

// targetType is the name of the target in tables.
const targetType = "era"

// sectorSize is the unit of tables, in bytes.
const sectorSize = dm.SectorSize

// Options say where a Device keeps its books. The zero value is the usual.
type Options struct {
	// RunDir is where the owner of a snapshot is locked and written down; a reboot
	// empties it. "" is /run/tidemark.
	RunDir string
	// StateDir is where the owner is written down a second time, so that a snapshot
	// is known as ours after a reboot. Where it cannot be written to, a snapshot
	// that a power cut has left counts as someone else's. "" is /var/lib/tidemark.
	StateDir string
}

func (o Options) withDefaults() Options {
	if o.RunDir == "" {
		o.RunDir = "/run/tidemark"
	}
	if o.StateDir == "" {
		o.StateDir = "/var/lib/tidemark"
	}
	return o
}
