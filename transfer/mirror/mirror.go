// Package mirror keeps a raw image or a device in step with a source, so that at every
// moment, whatever crashes, it holds the old content or the new.
//
// For most uses, Open a Store over a target and the folder beside it, Init it if there is
// no mirror yet, and hand package transfer the Sink of it. A mirror is a target under
// package transaction, which tells why it is old or new, with two files beside it that
// follow it: the state (package format/state) and the checksums of its blocks (package
// format/sums). The package knows nothing of trackers and views.
//
// An update of a complete mirror is one transaction. The journal carries the next state.
// When the journal is brought to the target, the checksums of what it holds are written
// along, and the state is replaced when target and checksums are synced. A journal whose
// update the state already counts is only forgotten.
//
// A first copy has no old content to keep. It is written in place under a state that says
// so, with the length of the part that a sync has made durable.
//
// # Writes by others
//
// The state has a stamp of the target (transaction.Stamp). A target that looks otherwise
// was written to by somebody else. It is then not trusted until Check has held every block
// against its checksum. Of a device whose writes the kernel does not count nothing is
// known: each run checks it. There is no stamp in the state while a first copy is being
// written, after a recovery, and where the filesystem's clock does not move on: then the
// next run checks.
//
// A recovery refuses an image that is not the file that the journal was made for. It
// finishes a target that others have written to: the next run checks it, and finds what
// they wrote.
//
// A Store serves one run at a time; the methods of its transactions that package transfer
// says so of may be called by several goroutines.
package mirror

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"tidemark/extent"
	"tidemark/format/state"
	"tidemark/format/sums"
	"tidemark/transfer/transaction"
)

// StateFile is the file of the folder that holds the state; it may be read, but not
// written, without opening the mirror.
const StateFile = "state"

// The other files of the folder, besides those of package transaction.
const (
	sumsFile = "sums"
)

// Store is the open mirror.
type Store struct {
	target    transaction.Target
	folder    transaction.Folder
	state     state.State
	exists    bool // there is a state
	blank     bool // the target reads as zeros where this Store has not written
	sums      *sums.Sums
	sumsFile  transaction.File
	seen      transaction.Stamp // how the target looked when it was opened, or at Begin
	recovered transaction.Done
	// syncFailed is the first error of sync.
	syncFailed error
}

// Open opens the mirror kept in target and folder, and first brings to an end what a
// crash interrupted; see package transaction. A target with no state opens as one that
// does not exist yet (see Exists). The error wraps ErrDamaged, ErrNotOurs or ErrNewer of
// packages state, sums or redo when the folder cannot be understood, and
// transaction.ErrOther when another file is in the place of the target; nothing has been
// written then.
func Open(target transaction.Target, folder transaction.Folder) (*Store, error) {
	s := New(target, folder)
	if err := s.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("mirror: %w", err), s.Close())
	}
	return s, nil
}

// New returns a mirror of which nothing is known, whatever the folder holds. Init makes it
// one.
func New(target transaction.Target, folder transaction.Folder) *Store {
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
	next := state.State{}
	done, err := transaction.Recover(s.target, s.folder, transaction.FinishSame, s.steps(&next, func(_ int64, blob []byte) (bool, error) {
		var err error
		if next, err = s.fromJournal(blob); err != nil {
			return false, err
		}
		if n := len(next.Runs); n > 0 {
			next.Runs[n-1].Outcome = "pending: committed, and finished when the mirror was opened again"
		}
		return next.Update <= s.state.Update, nil
	}))
	if err != nil {
		return err
	}
	s.recovered = done
	s.seen, err = s.target.Stamp()
	return err
}

// fromJournal returns the state that comes with a journal of this mirror.
func (s *Store) fromJournal(blob []byte) (state.State, error) {
	next, err := decodeBlob(blob)
	if err == nil && (next.ID != s.state.ID || next.BlockSize != s.state.BlockSize) {
		err = fmt.Errorf("%w: it is of mirror %x, not %x", transaction.ErrOtherOwner, next.ID, s.state.ID)
	}
	return next, err
}

func decodeBlob(blob []byte) (state.State, error) {
	if len(blob) == 0 {
		return state.State{}, transaction.ErrOtherOwner
	}
	return state.Decode(blob)
}

// Exists reports whether there is a mirror, complete or not.
func (s *Store) Exists() bool { return s.exists }

// State returns what is known of the mirror.
func (s *Store) State() state.State { return s.state }

// Recovered tells in words what Open found to finish or discard, "" if nothing.
func (s *Store) Recovered() string { return string(s.recovered) }

// Suspect tells in words why the target may hold something else than the checksums say,
// as it was when it was opened; "" when there is no sign of it. Check finds out.
func (s *Store) Suspect() string { return transaction.Stamp(s.state.Target).Differs(s.seen) }

// Misfit returns the bytes that the target of a complete mirror lacks or has too many, as
// it was when it was opened. The next update sets that right.
func (s *Store) Misfit() extent.Extent {
	if !s.state.Complete || s.fits(s.state.Size) {
		return extent.Extent{}
	}
	off := min(s.seen.Size, s.state.Size)
	return extent.Extent{Off: off, Len: max(s.seen.Size, s.state.Size) - off}
}

// fits reports whether the target has the size of a mirror of size bytes. A device may be
// larger.
func (s *Store) fits(size int64) bool {
	return s.seen.Size == size || s.seen.Kind == transaction.Device && s.seen.Size > size
}

// Copied returns how many bytes from the start of the target have been copied, and have
// checksums.
func (s *Store) Copied() int64 {
	if s.state.Complete {
		return s.state.Size
	}
	return s.state.Copied
}

// Checked remembers what a Check of all of the target found at that time: the blocks, or
// bytes that it lacks or has too many, that are not what they should be. If there are any
// the next run holds every block against its checksum.
func (s *Store) Checked(at time.Time, bad extent.Set) (err error) {
	defer explain(&err, "remember what was found")
	next := s.state
	next.Damage = nil
	if bad.Empty() {
		next.Verified = at
	} else {
		next.Damage, next.Target = &state.Damage{Time: at, Bytes: bad.Bytes()}, state.Target{}
	}
	return s.saveState(next)
}

// explain says in an error what failed.
func explain(err *error, what string) {
	if *err != nil {
		*err = fmt.Errorf("mirror: %s: %w", what, *err)
	}
}

// Close closes the files of the folder; target and folder stay the caller's.
func (s *Store) Close() error {
	if s.sumsFile == nil {
		return nil
	}
	f := s.sumsFile
	s.sumsFile = nil
	return f.Close()
}

// Init makes a new mirror of size bytes, which counts as not yet copied. foreign says that
// the target may hold anything; otherwise it has never been written to and reads as zeros.
// What an earlier mirror in the folder knew is forgotten, and so is an update that waits.
func (s *Store) Init(size, blockSize int64, source state.Source, foreign bool) (err error) {
	defer explain(&err, "begin")
	if err := s.Close(); err != nil {
		return err
	}
	if err := forget(s.folder); err != nil {
		return err
	}
	next := state.State{Size: size, BlockSize: blockSize, Source: source, Foreign: foreign}
	if err := s.createSums(&next); err != nil {
		return err
	}
	if err := s.sumsFile.Sync(); err != nil {
		return err
	}
	transaction.Reread(s.target) // a foreign target will be compared
	s.blank = !foreign
	return s.saveState(next)
}

// createSums makes the checksums of a target of zeros, under a new id.
func (s *Store) createSums(next *state.State) (err error) {
	if _, err = rand.Read(next.ID[:]); err != nil {
		return err
	}
	if s.sumsFile, err = s.folder.Open(sumsFile, true); err != nil {
		return err
	}
	if s.sums, err = sums.Create(s.sumsFile, next.ID, next.BlockSize); err != nil {
		return err
	}
	return s.extendSums(next.Size)
}

// Discard forgets the update that waits in the folder of a mirror. The target, which it
// leaves alone, may be between old and new: it counts as a first copy over what the target
// holds, of which nothing has been copied.
func Discard(folder transaction.Folder) error {
	s := New(nil, folder)
	err := s.loadState()
	if err == nil && s.exists {
		next := s.state
		next.Complete, next.Copied, next.Foreign = false, 0, true
		next.Mark, next.Target = "", state.Target{}
		err = s.saveState(next) // until the next step the update is finished by the next Open
	}
	if err == nil {
		_, err = transaction.Recover(nil, folder, transaction.Discard, transaction.Steps{})
	}
	explain(&err, "discard")
	return err
}

// Forget removes all that the folder knows of a mirror, and an update that waits.
func Forget(folder transaction.Folder) (err error) {
	defer explain(&err, "forget")
	if err := forget(folder); err != nil {
		return err
	}
	if err := folder.Remove(sumsFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return folder.Sync()
}

// forget leaves the sums, which nothing reads without a state.
func forget(folder transaction.Folder) error {
	// The update that waits goes first: without a state it would be taken for damage.
	if _, err := transaction.Recover(nil, folder, transaction.Discard, transaction.Steps{}); err != nil {
		return err
	}
	if err := folder.Remove(StateFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return folder.Sync()
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
	s.state, err = state.Read(f)
	s.exists = err == nil
	return err
}

// saveState replaces the state in one step: a power cut leaves the old one or the new one.
func (s *Store) saveState(next state.State) error {
	b, err := next.Encode()
	if err != nil {
		return err
	}
	if err := transaction.Replace(s.folder, StateFile, b); err != nil {
		return err
	}
	s.state, s.exists = next, true
	return nil
}

// refuseOrphans keeps a folder that lost its state from being taken for a new one while it
// holds the only complete copy of an update.
func (s *Store) refuseOrphans() error {
	pending, err := transaction.Pending(s.folder)
	if err == nil && pending {
		err = fmt.Errorf("a committed journal without a state: %w", state.ErrDamaged)
	}
	return err
}

func (s *Store) openSums() (err error) {
	s.sums, s.sumsFile, err = OpenSums(s.folder, s.state)
	return err
}

// OpenSums opens the checksums of the mirror with that state. The file, which the caller
// closes, need not be writable. The error wraps one of package sums when they cannot be
// used.
func OpenSums(folder transaction.Folder, st state.State) (*sums.Sums, transaction.File, error) {
	f, err := folder.Open(sumsFile, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("sums: file is missing: %w", sums.ErrDamaged)
	}
	if err != nil {
		return nil, nil, err
	}
	all, err := sums.Open(f, st.ID, st.BlockSize)
	if err == nil {
		err = longEnough(f, all, st.Size)
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return all, f, nil
}

// longEnough refuses a file of sums that was cut short.
func longEnough(f transaction.File, all *sums.Sums, of int64) error {
	size, err := f.Size()
	if err != nil {
		return err
	}
	if want := all.FileSize(of); size < want {
		return fmt.Errorf("sums: the file has %d bytes, want %d: %w", size, want, sums.ErrDamaged)
	}
	return nil
}

// extendSums makes the sums file as long as a target of size bytes needs, so that one that
// was cut short is told from one that ends with zeros.
func (s *Store) extendSums(size int64) error {
	now, err := s.sumsFile.Size()
	if err != nil || size == 0 || now >= s.sums.FileSize(size) {
		return err
	}
	return s.sums.Write([]sums.Sum{{}}, size-1)
}

// PendingAfter reports, without opening or locking the folder at path, whether it holds a
// committed update that the state st does not count yet.
func PendingAfter(path string, st state.State) (bool, error) {
	blob, waits, err := transaction.Waiting(path)
	if err != nil || !waits {
		return false, err
	}
	next, err := decodeBlob(blob)
	return err == nil && next.Update > st.Update, err
}
