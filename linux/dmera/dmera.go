// Package dmera sets up, asks and takes apart dm-era devices: device-mapper devices that
// remember in which era each of their blocks was last written.
//
// For most uses, make a device with Create, or bring it up again with Activate. For a
// list of changes, call Device.Prepare, then Device.TakeSnapshot at the moment of the
// copy, and Snapshot.Changed with the era of the previous copy.
//
// The package owns the "era" target's table, status line and messages, the activation of
// a device with discards switched off, and the ownership of the one metadata snapshot
// that a device can hold. Package format/era knows the format of the metadata, and
// package linux/dm the ioctls. The package refuses metadata and data that are in use, lie
// on one another or are too small, and any device that is not one whole era target. A
// Device and a Snapshot are each for one goroutine at a time.
//
// # Eras
//
// As in drivers/md/dm-era-target.c of Linux 6.1 to 6.12, and seen in both.
//
// A device has a current era, a number, and the current writeset, one bit for each
// block. The first write to a block in an era waits until the bit of the block is set,
// stored in the metadata, and flushed; only then the kernel passes the write down. Later
// writes to that block in the same era pass at once. So at every moment, and after every
// power cut, the metadata on the disk names each block that a write may have reached.
//
// A checkpoint, a metadata snapshot and a resume end the era: the kernel stores the
// current writeset under the era's number, adds one to the number, and begins an empty
// writeset. All of this is in the metadata on the disk before the call returns, so an era
// that a caller has seen is never used again. The kernel waits for writes that are just
// looking at the old writeset: it counts each write in an era before the change or after
// it, never in none.
//
// # What a snapshot tells
//
// TakeSnapshot at a moment T ends era E-1 and begins era E, which [Snapshot.Era] returns.
// The snapshot has all eras up to E-1, and stays as it is while the device is written to.
// "Changed since S" are the blocks with a write that the kernel counted in an era from S
// to E-1: each block that was written to after S began and before T.
//
// # Which era to keep as the mark
//
// The kernel counts a write when the device gets it, not when it has ended. A write that
// is in flight at T is counted before E, and a copy that reads its block right after T
// may read the old content. The next list, since E, would not name that block. So:
//
//   - When no write is in flight at T, because the filesystem is frozen or the device is
//     not open, keep E.
//   - Otherwise call Drain before TakeSnapshot, and keep the era D that Drain returns
//     (D < E). Drain waits for the writes in flight and holds new ones back meanwhile:
//     each write counted before D has reached the data before Drain returns, so a copy
//     made after it has them. The next list names writes between Drain and the snapshot
//     a second time.
//
// Keep the mark with the Identity of the metadata. A mark above the era of a snapshot
// belongs to other metadata, or the metadata was put back from a copy.
//
// # Restarts and power cuts
//
// The kernel stores the current writeset when a device is closed or suspended. After a
// power cut the superblock on the disk still refers to the current writeset, with each
// write that can have reached the data, and the kernel stores that at the next activation
// (since 5.12, and 4.4 to 5.11 with the stable fixes of March 2021; earlier kernels threw
// it away). Each activation costs one era. So marks outlive both. They do not tell of a
// write to the data device past the era device, or while the era device is not up. A
// program that sees such a use calls NotePast, also while the metadata is not there.
//
// A held snapshot outlives both as well.
//
// # What dm-era does not see
//
//   - A discard marks the first block that it touches, and no other. Create and Activate
//     therefore switch discards off before the device is announced, while no other
//     program can mount it. Resize switches them off right after the resume, and fails
//     when the device took one in between. Status tells whether discards are off and how
//     many there were since the activation; NoteGaps tells from which era on there were
//     none.
//   - Blocks that a device has grown by have era 0, as if they were never written to: the
//     caller must copy them too.
//   - When the metadata is full, no more bits can be stored, and writes fail. They are not
//     lost from the list.
//
// # Suspended devices
//
// The kernel answers status and messages of an era device only while the device is
// resumed; until then a caller would wait. These calls fail with ErrSuspended instead.
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
	// ErrHeld says that a living process, or another program, holds a metadata
	// snapshot.
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
	// ErrDiscards says that the device took discards, so that the list of changes is
	// not complete.
	ErrDiscards = errors.New("discards were let through")
	// ErrPast says that the data device may have been written to while the era
	// device was not up, so that the list of changes is not complete.
	ErrPast = errors.New("its data was in use while the era device was not up")
	// ErrFailed says that the kernel cannot read or write the metadata any more,
	// or that it is full.
	ErrFailed = errors.New("the kernel's dm-era has failed on the metadata")
)

// targetType is the name of the target in tables.
const targetType = "era"

// sectorSize is the unit of tables, in bytes.
const sectorSize = dm.SectorSize

// Options say where a Device keeps its records. The zero value is the usual.
type Options struct {
	// RunDir is a folder that a reboot empties: the lock of a snapshot's owner is
	// there, and the owner's record. "" means /run/tidemark.
	RunDir string
	// StateDir has a copy of that record, so that a snapshot counts as ours after a
	// reboot too. Where StateDir is not writable, a snapshot that a power cut leaves
	// counts as another program's. Gaps (NoteGaps, NotePast) are recorded here as
	// well. "" means /var/lib/tidemark.
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
