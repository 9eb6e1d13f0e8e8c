// Package mirror keeps a raw image or a device in step with a source, so that at
// every moment, whatever crashes, it holds the old content or the new.
//
// It owns the target, the folder beside it (package format/sidecar) and the
// order in which they are written. It knows nothing of sources, trackers or
// views: package transfer reads, and hands over blocks with their checksums.
//
// # Why the target is old or new
//
// An update of a complete mirror touches nothing but the file "journal" until it
// is committed. Commit writes the last record and syncs the journal; renames it
// to "journal.ready" and syncs the folder; and only then writes to the target.
// A crash before the rename is durable leaves the old target and a journal that
// the next Open discards. A crash after it leaves "journal.ready", which holds
// every block of the update, so that the next Open applies it again from the
// start, which gives the same result however far the first attempt came. The
// state is replaced (by rename) when target and sums are synced, and the journal
// is removed last; a journal whose update the state already counts is done with.
//
// A first copy has no old content to keep. It is written in place under a state
// that says so, with the length of the part that a sync has made durable.
//
// A target that someone else wrote to is noticed by its fingerprint (size and
// modification time of a file; boot, sequence number and written sectors of a
// device). It is then not trusted until Check has held every block against its
// checksum. Of a device whose writes the kernel does not count nothing is known: each
// run checks it. While a first copy is being written, and after an update that a crash
// interrupted was finished, there is no fingerprint in the state: what a crash
// leaves behind may be newer than any, and not only ours.
//
// What is compared with the target, or checked, is read from its disk and not from
// memory: after a write that failed memory goes on showing what the disk has not got,
// and the kernel has reported that once and for all to the run that failed.
//
// A Store serves one run at a time; the methods of an Update that say so may be
// called by several goroutines.
package mirror

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"tidemark/extent"
	"tidemark/format/sidecar"
)

// StateFile is the file of the folder that holds the state; it may be read, but
// not written, without opening the mirror.
const StateFile = "state"

// The other files of the folder.
const (
	newState    = "state.new"
	sumsFile    = "sums"
	journalFile = "journal"
	readyFile   = "journal.ready"
)

// Folder is the place beside a target where its sidecar files lie. What Rename
// and Remove did, and which files exist, survives a power cut once Sync has
// returned.
type Folder interface {
	// Open opens a file for reading and writing. Without create a missing file
	// is fs.ErrNotExist; with it the file is made, or emptied.
	Open(name string, create bool) (File, error)
	Rename(from, to string) error
	Remove(name string) error
	Sync() error
}

// File is one open file of a Folder. What was written survives a power cut once
// Sync has returned.
type File interface {
	io.ReaderAt
	io.WriterAt
	Size() (int64, error)
	Sync() error
	Close() error
}

// Target is what the mirror is kept in.
type Target interface {
	io.ReaderAt
	io.WriterAt
	// Zero makes an extent read as zeros.
	Zero(e extent.Extent) error
	// Reserve makes room for writing an extent without changing what it reads
	// as, where the target can say that beforehand.
	Reserve(e extent.Extent) error
	// Resize makes the target hold size bytes, as far as it has a size of its
	// own: a device only has to be large enough.
	Resize(size int64) error
	Sync() error
	// Fingerprint tells how the target looks now. One with a size alone says that
	// it would look the same after someone else has written to it.
	Fingerprint() (sidecar.Target, error)
}

// Store is the open mirror.
type Store struct {
	target    Target
	folder    Folder
	state     sidecar.State
	exists    bool // there is a state
	sums      *sidecar.Sums
	sumsFile  File
	seen      sidecar.Target // how the target looked when it was opened
	recovered string
	suspect   string
	// syncFailed is the first error of syncData.
	syncFailed error
}

// Open opens the mirror kept in target and folder, and first brings to an end
// what a crash interrupted: an update that was committed is applied, one that
// was not is discarded. A target with no state opens as one that does not exist
// yet (see Exists). The error wraps sidecar.ErrDamaged, ErrNotOurs or ErrNewer
// when the folder cannot be understood; nothing has been written then.
func Open(target Target, folder Folder) (*Store, error) {
	s := New(target, folder)
	if err := s.open(); err != nil {
		s.Close()
		return nil, fmt.Errorf("mirror: %w", err)
	}
	return s, nil
}

// New returns a mirror of which nothing is known, whatever the folder holds. Init
// makes it one.
func New(target Target, folder Folder) *Store {
	return &Store{target: target, folder: folder}
}

func (s *Store) open() error {
	if err := s.loadState(); err != nil {
		return err
	}
	if !s.exists {
		return s.refuseOrphans()
	}
	if err := s.openSums(); err != nil {
		return err
	}
	if err := s.recover(); err != nil {
		return err
	}
	var err error
	if s.seen, err = s.target.Fingerprint(); err != nil {
		return err
	}
	s.suspect = differs(s.state.Target, s.seen)
	return nil
}

// Exists reports whether there is a mirror, complete or not.
func (s *Store) Exists() bool { return s.exists }

// State returns what is known of the mirror.
func (s *Store) State() sidecar.State { return s.state }

// Recovered tells in words what Open found to finish or discard, "" if nothing.
func (s *Store) Recovered() string { return s.recovered }

// Suspect tells in words why the target may hold something else than the sums
// say, "" when there is no sign of it. Check finds out.
func (s *Store) Suspect() string { return s.suspect }

// Close closes the files of the folder; target and folder stay the caller's.
func (s *Store) Close() error {
	if s.sumsFile == nil {
		return nil
	}
	f := s.sumsFile
	s.sumsFile = nil
	return f.Close()
}

// Record adds a run that changed nothing else to the history.
func (s *Store) Record(run sidecar.Run) error {
	next := s.state
	next.AddRun(run)
	return s.saveState(next)
}

func (s *Store) loadState() error {
	f, err := s.folder.Open(StateFile, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return err
	}
	if size > sidecar.MaxState {
		return fmt.Errorf("state: %d bytes: at most %d: %w", size, sidecar.MaxState, sidecar.ErrNotOurs)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, size), b); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	s.state, err = sidecar.DecodeState(b)
	s.exists = err == nil
	return err
}

// refuseOrphans keeps a folder that lost its state from being taken for a new
// one while it holds the only complete copy of an update.
func (s *Store) refuseOrphans() error {
	pending, err := Pending(s.folder)
	if err == nil && pending {
		err = fmt.Errorf("a committed journal without a state: %w", sidecar.ErrDamaged)
	}
	return err
}

func (s *Store) openSums() error {
	f, err := s.folder.Open(sumsFile, false)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("sums: file is missing: %w", sidecar.ErrDamaged)
	}
	if err != nil {
		return err
	}
	s.sumsFile = f
	if s.sums, err = sidecar.OpenSums(f, s.state.ID, s.state.BlockSize); err != nil {
		return err
	}
	size, err := f.Size()
	if err != nil {
		return err
	}
	if want := s.sums.FileSize(s.state.Size); size < want {
		return fmt.Errorf("sums: the file has %d bytes, want %d: %w", size, want, sidecar.ErrDamaged)
	}
	return nil
}

// saveState replaces the state in one step: a power cut leaves the old one or
// the new one.
func (s *Store) saveState(next sidecar.State) error {
	b, err := next.Encode()
	if err != nil {
		return err
	}
	f, err := s.folder.Open(newState, true)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(b, 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := s.folder.Rename(newState, StateFile); err != nil {
		return err
	}
	if err := s.folder.Sync(); err != nil {
		return err
	}
	s.state, s.exists = next, true
	return nil
}

// Misfit returns the bytes that the target of a complete mirror lacks or has too
// many, as it was opened. The next update sets that right.
func (s *Store) Misfit() extent.Extent {
	if !s.state.Complete || fits(s.seen, s.state.Size) {
		return extent.Extent{}
	}
	off := min(s.seen.Size, s.state.Size)
	return extent.Extent{Off: off, Len: max(s.seen.Size, s.state.Size) - off}
}

// fits reports whether a target has the size of a mirror of size bytes. A device,
// which is what has no time of modification, may be larger.
func fits(t sidecar.Target, size int64) bool {
	return t.Size == size || t.MTime == 0 && t.Size > size
}

// stamp puts how the target looks, now that we have written to it, into a state
// that is about to be saved.
func (s *Store) stamp(next *sidecar.State) error {
	now, err := s.target.Fingerprint()
	s.seen, s.suspect, next.Target = now, "", now
	return err
}

// telling reports whether a fingerprint changes when someone writes to the target.
func telling(t sidecar.Target) bool { return t.MTime != 0 || t.BootID != "" }

// changed is differs for two looks of one run; what neither of them can tell is no
// change.
func changed(was, now sidecar.Target) string {
	if was.Size == now.Size && (!telling(was) || !telling(now)) {
		return ""
	}
	return differs(was, now)
}

// differs tells in words what of a target has changed, "" if nothing.
func differs(was, now sidecar.Target) string {
	switch {
	case !telling(now):
		return "the kernel does not count what is written to it (queue/iostats may be 0), so that each run has to look"
	case was == now:
		return ""
	case !telling(was):
		return "the last run was cut off, or could not tell how it left it, or it was found to be damaged"
	case was.Size != now.Size:
		return fmt.Sprintf("its size is %d bytes, it was %d", now.Size, was.Size)
	case was.MTime != now.MTime:
		return "it was modified since the last run"
	case was.BootID != now.BootID:
		return "the machine was booted since the last run"
	case was.DiskSeq != now.DiskSeq:
		return "the device was replaced or plugged in again since the last run"
	default:
		return fmt.Sprintf("%d sectors were written to it since the last run", now.Written-was.Written)
	}
}
