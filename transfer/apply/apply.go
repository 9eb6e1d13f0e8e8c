// Package apply brings a stream of changed ranges (package erastream) to an image or a
// device so that, whatever crashes, it holds the old content or the new.
//
// It refuses a stream that is cut off, damaged or does not fit the target, and a target
// that somebody else wrote to meanwhile; nothing has been written to the target then. The stream has no end
// mark and no checksums: one that was cut off between two records, or in which
// bits flipped, looks whole.
//
// For most uses, Open a Store over a target and the folder beside it, and Apply the stream.
// Package transaction brings the change to the target, and tells why that is old or new;
// the package comment there also says what the target of a journal is.
//
// What waits in a committed journal would spoil a target that somebody has put in the place
// of the right one, or written to, and nothing here would notice afterwards. Open finishes
// a change only where nobody has written to the target since the commit. Everywhere else it
// refuses with ErrPending, until its caller says by Options.Waiting what shall be.
//
// A target that does not exist yet needs no journal: the image grows in the file "image" of
// the folder, is synced, and becomes the target in one step.
//
// A Store is used by one goroutine at a time, and its folder by one Store.
package apply

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"tidemark/extent"
	"tidemark/transfer/transaction"
)

// imageFile is a new target while it grows, in the folder.
const imageFile = "image"

// ErrPending says that a change was committed and has not reached the target: it is between
// old and new, unless somebody has put another in its place.
var ErrPending = errors.New("a change that was committed has not reached the target yet")

// Place is a folder that can hand a file to where the target shall be.
type Place interface {
	transaction.Folder
	// Publish takes a file out of the folder and makes it the target, which
	// must not exist. It survives a power cut once Publish has returned.
	Publish(name string) error
}

// Phase is what a run is doing.
type Phase string

// The phases: the stream is read, and what was read is written to the target.
const (
	PhaseRead  Phase = "read"
	PhaseWrite Phase = "write"
)

// Options say how to apply a stream. The zero value works.
type Options struct {
	// Waiting says what Open does with a committed change that waits for its target.
	Waiting transaction.Policy
	// Grow lets an image become larger than it is. A new one may be of any size.
	Grow bool
	// Size is what an image has afterwards at least, in bytes; records that end
	// behind that are refused, whatever Grow says. 0 says nothing.
	Size int64
	// Progress, if not nil, is told the bytes that are done of a phase, and of
	// how many, -1 where that is not known. It is called by one goroutine at a
	// time, and not after the function that was given it has returned.
	Progress func(p Phase, done, total int64)
}

func (o Options) progress(p Phase, done, total int64) {
	if o.Progress != nil {
		o.Progress(p, done, total)
	}
}

// writing is progress of PhaseWrite.
func (o Options) writing(done, total int64) { o.progress(PhaseWrite, done, total) }

// Report tells what a stream held and what became of it.
type Report struct {
	Records int64 `json:"records"`
	Bytes   int64 `json:"bytes"`   // of data
	Zeros   int64 `json:"zeros"`   // of Bytes, what was not written but left or made a hole
	Journal int64 `json:"journal"` // length of the journal, bytes
	Size    int64 `json:"size"`    // of the target afterwards, bytes
	Created bool  `json:"created"` // the target did not exist

	end int64 // of the last record
}

// Store is an open target with the folder beside it.
type Store struct {
	target    transaction.Target
	folder    transaction.Folder
	seen      int64 // size of the target, bytes
	recovered transaction.Done
}

// Open opens a target, and first brings to an end what a crash interrupted: a change that
// was not committed is discarded, and one that was as o.Waiting says. An error that wraps
// ErrPending is one of transaction.Recover: the committed change waits still.
func Open(target transaction.Target, folder transaction.Folder, o Options) (_ *Store, err error) {
	defer explain(&err)
	done, err := transaction.Recover(target, folder, o.Waiting, transaction.Steps{Progress: o.writing})
	if err != nil {
		if pending, perr := transaction.Pending(folder); pending || perr != nil {
			err = fmt.Errorf("%w: %w", ErrPending, err)
		}
		return nil, err
	}
	if err := folder.Remove(imageFile); err == nil && done == transaction.Nothing {
		done = transaction.Uncommitted
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	now, err := target.Stamp()
	if err != nil {
		return nil, err
	}
	return &Store{target: target, folder: folder, seen: now.Size, recovered: done}, nil
}

// explain says in an error what failed.
func explain(err *error) {
	if *err != nil {
		*err = fmt.Errorf("apply: %w", *err)
	}
}

// Recovered tells in words what Open found to finish or discard, "" if nothing.
func (s *Store) Recovered() string { return string(s.recovered) }

// Check reads a stream to its end and reports what it holds, and the errors that
// applying it to a target of size bytes would meet before anything is written.
// Size is negative for a target that does not exist.
func Check(ctx context.Context, r io.Reader, size int64, o Options) (Report, error) {
	rep, err := pump(ctx, r, o.limit(size), nothing{}, o)
	rep.Created, rep.Size = size < 0, o.sizeAfter(size, rep.end)
	explain(&err)
	return rep, err
}

// limit returns where records must end in a target of size bytes, or negative.
func (o Options) limit(size int64) int64 {
	switch {
	case o.Size > 0:
		return max(size, o.Size)
	case size < 0 || o.Grow:
		return -1
	}
	return size
}

// sizeAfter returns the size of the target afterwards, in bytes.
func (o Options) sizeAfter(size, end int64) int64 { return max(size, end, o.Size, 0) }

// nothing is a sink that forgets.
type nothing struct{}

func (nothing) Data(int64, []byte) error { return nil }
func (nothing) Zero(extent.Extent) error { return nil }
