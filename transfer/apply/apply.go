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
// redo) until the end of the stream. Room for the journal is reserved in the target,
// the journal is sealed and synced, renamed to "journal.ready", and the folder is
// synced; only then is the target written to. A crash before the rename is durable
// leaves the old target and a journal that the next Open discards. A crash after it
// leaves "journal.ready", which holds all of the change: it can be brought to the
// target from the start, after every byte was held against its checksums, and gives
// the same result however far the first attempt came. The journal is removed last,
// when the target is synced.
//
// # Whose target it is
//
// What waits in "journal.ready" is right for the target that it was made for, and
// would spoil one that somebody has put in its place meanwhile, or written to.
// Therefore the journal tells what the target was when it was committed: for an
// image its file and its times, for a device its serial number in this boot and how
// much was written to it. Where that is as it was, nobody has written yet, and Open
// finishes the change. Everywhere else nothing tells the writes of an interrupted
// run from somebody else's, and Open refuses with ErrPending, until its caller says
// by Options.Waiting what shall be.
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
	// it is between old and new, unless somebody has put another in its place.
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

// Waiting says what becomes of a committed change that waits for its target.
type Waiting int

// What becomes of it.
const (
	// FinishUntouched brings it to a target that nobody has written to since the
	// commit, and refuses any other.
	FinishUntouched Waiting = iota
	// Finish brings it to the target, whoever has written to that.
	Finish
	// Discard forgets it. The target stays as it is.
	Discard
)

// Options say how to apply a stream. The zero value works.
type Options struct {
	// Waiting is for Open.
	Waiting Waiting
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
// change that was not committed is discarded, and one that was as o.Waiting says.
// The error wraps ErrPending, and redo.ErrNotOurs, ErrDamaged or ErrNewer when a
// committed journal cannot be understood, or ErrChanged when the target is not
// known to be the one it was made for, or of another size; nothing has been written
// to the target then.
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
	did, err := s.settle(o)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPending, err)
	}
	s.recovered = did
	for _, name := range []string{journalFile, imageFile} {
		switch err := s.folder.Remove(name); {
		case err == nil && did == "":
			s.recovered = "discarded a change that was not committed"
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return err
		}
	}
	return nil
}

// settle does to a committed journal what o says, and tells it in words, "" when
// there is none.
func (s *Store) settle(o Options) (string, error) {
	if o.Waiting == Discard {
		done, err := Forget(s.folder)
		if !done || err != nil {
			return "", err
		}
		return "discarded a change that was committed", nil
	}
	f, err := s.folder.Open(readyFile, false)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return "", err
	}
	j, err := redo.NewReader(f, size)
	if err == nil {
		err = s.mayFinish(j, o)
	}
	// All of it is read before any of it is written.
	if err == nil {
		err = j.Verify(nil)
	}
	// The process may have ended before the rename was durable.
	if err == nil {
		err = s.folder.Sync()
	}
	if err == nil {
		err = s.finish(j, f, o)
	}
	return "finished a change that was committed", err
}

// mayFinish refuses a target that the journal may not be for.
func (s *Store) mayFinish(j *redo.Reader, o Options) error {
	now, err := s.target.Fingerprint()
	if err != nil {
		return err
	}
	if now.Size < j.Before || now.Size > j.After {
		return fmt.Errorf("%w: it has %d bytes, the change that waits for it was made for %d", ErrChanged, now.Size, j.Before)
	}
	if o.Waiting == Finish {
		return nil
	}
	is, err := digest(s.target)
	if err == nil && (is != j.Target || is == redo.Digest{}) {
		err = fmt.Errorf("%w, or by the run that was interrupted: that cannot be told", ErrChanged)
	}
	return err
}

// Forget removes a committed journal, durably, and reports whether there was one. Its
// target stays as it is, which may be between old and new.
func Forget(folder mirror.Folder) (bool, error) {
	err := folder.Remove(readyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = folder.Sync()
	}
	return true, err
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
