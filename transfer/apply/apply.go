// Package apply brings a stream of changed ranges (package erastream) to an image
// or a device so that, whatever crashes, it holds the old content or the new.
//
// It owns the reading of the stream, the files beside the target that this takes
// and the order in which they are written. It refuses a stream that is cut off,
// damaged or does not fit the target, and a target that someone else wrote to
// meanwhile; nothing has been written to the target then. The stream has no end
// mark and no checksums: one that was cut off between two records, or in which
// bits flipped, looks whole.
//
// # Why the target is old or new
//
// Of a target that exists nothing is touched but the file "journal" (package
// redo) until the end of the stream. The journal is then sealed, room for it is
// reserved in the target, the journal is synced, renamed to "journal.ready", and
// the folder is synced; only then is the target written to. A crash before the
// rename is durable leaves the old target and a journal that the next Open
// discards. A crash after it leaves "journal.ready", which holds all of the
// change, so that the next Open brings it to the target from the start, after it
// has held every byte against its checksums; that gives the same result however
// far the first attempt came. The journal is removed last, when the target is
// synced.
//
// A target that does not exist yet needs no journal: the image grows in the file
// "image" of the folder, is synced, and becomes the target in one step.
//
// A Store is used by one goroutine at a time, and its folder by one Store.
package apply

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"tidemark/format/redo"
	"tidemark/transfer/mirror"
)

// The files of the folder. journal.ready is also what package mirror calls a
// committed update, so that it takes no target that waits for one.
const (
	journalFile = "journal"
	readyFile   = "journal.ready"
	imageFile   = "image"
)

var (
	// ErrChanged says that someone else changed the target while, or after, the
	// stream was read.
	ErrChanged = errors.New("target was changed by someone else")
	// ErrPending says that a change was committed and has not reached the target:
	// it is between old and new until Open has finished it.
	ErrPending = errors.New("a change that was committed has not reached the target yet")
)

// Place is a folder that can hand a file to where the target shall be.
type Place interface {
	mirror.Folder
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
	target    mirror.Target
	folder    mirror.Folder
	seen      int64 // size of the target, bytes
	recovered string
}

// Open opens a target, and first brings to an end what a crash interrupted: a
// change that was committed is applied, one that was not is discarded. The error
// wraps redo.ErrNotOurs, ErrDamaged or ErrNewer when a committed journal cannot be
// understood, and ErrChanged when the target is not the one it was made for;
// nothing has been written to the target then.
func Open(target mirror.Target, folder mirror.Folder, o Options) (*Store, error) {
	s := &Store{target: target, folder: folder}
	if err := s.recover(o); err != nil {
		return nil, fmt.Errorf("apply: %w", err)
	}
	now, err := target.Fingerprint()
	if err != nil {
		return nil, fmt.Errorf("apply: %w", err)
	}
	s.seen = now.Size
	return s, nil
}

// Recovered tells in words what Open found to finish or discard, "" if nothing.
func (s *Store) Recovered() string { return s.recovered }

func (s *Store) recover(o Options) error {
	done, err := s.finishReady(o)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPending, err)
	}
	if done {
		s.recovered = "finished a change that was committed"
	}
	for _, name := range []string{journalFile, imageFile} {
		switch err := s.folder.Remove(name); {
		case err == nil && !done:
			s.recovered = "discarded a change that was not committed"
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return err
		}
	}
	return nil
}

// finishReady brings a committed journal to the target, if there is one.
func (s *Store) finishReady(o Options) (bool, error) {
	f, err := s.folder.Open(readyFile, false)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return false, err
	}
	j, err := redo.NewReader(f, size)
	if err != nil {
		return false, err
	}
	now, err := s.target.Fingerprint()
	if err != nil {
		return false, err
	}
	if now.Size < j.Before || now.Size > j.After {
		return false, fmt.Errorf("%w: it has %d bytes, the change that waits for it was made for %d", ErrChanged, now.Size, j.Before)
	}
	// All of it is read before any of it is written.
	if err := j.Verify(nil); err != nil {
		return false, err
	}
	// The process may have ended before the rename was durable.
	if err := s.folder.Sync(); err != nil {
		return false, err
	}
	return true, s.finish(j, f, o)
}

// Check reads a stream to its end and reports what it holds, and the errors that
// applying it to a target of size bytes would meet before anything is written.
// Size is negative for a target that does not exist.
func Check(ctx context.Context, r io.Reader, size int64, o Options) (Report, error) {
	rep, err := pump(ctx, r, o.limit(size), nothing{}, o)
	if err != nil {
		return rep, fmt.Errorf("apply: %w", err)
	}
	rep.Created = size < 0
	rep.Size = o.sizeAfter(size, rep.end)
	return rep, nil
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

func (nothing) data(int64, []byte) error { return nil }
func (nothing) zero(int64, int64) error  { return nil }
