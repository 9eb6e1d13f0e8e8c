package transaction

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"tidemark/format/redo"
)

// Policy says to which targets a committed change is brought.
type Policy int

const (
	// FinishUntouched brings it to a target that nobody has written to since the
	// commit, not even the run that was interrupted, and refuses any other.
	FinishUntouched Policy = iota
	// FinishSame brings it to the target that it was made for, also when somebody
	// has written to it. It is for owners that find such writes afterwards.
	FinishSame
	// Finish brings it to any target that has the right size.
	Finish
	// Discard forgets it. The target stays as it is.
	Discard
)

// Done says in words what Recover found and did.
type Done string

const (
	Nothing     Done = "" // there was nothing to do
	Uncommitted Done = "discarded a change that was not committed"
	Finished    Done = "finished a change that was committed"
	Discarded   Done = "discarded a change that was committed" // as the Policy says
)

// Recover brings to an end what a crash left in a folder. A change that was not
// committed is discarded. A committed one is treated as policy says; steps do the
// owner's part, and get no stamp, because nobody knows what happened to the target since
// the crash. When a committed change is refused, or spoilt, nothing has been written to the
// target by this call; the error wraps ErrOther, ErrChanged, ErrOtherOwner, redo.ErrDamaged,
// redo.ErrNotOurs or redo.ErrNewer, and the journal stays.
func Recover(target Target, folder Folder, policy Policy, steps Steps) (Done, error) {
	done, err := recoverReady(target, folder, policy, steps)
	if err != nil {
		return Nothing, fmt.Errorf("transaction: recover: %w", err)
	}
	err = folder.Remove(journalFile)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.EROFS):
		return done, nil // on a read-only filesystem what was not committed can wait
	case err != nil:
		return done, fmt.Errorf("transaction: recover: %w", err)
	case done == Nothing:
		done = Uncommitted
	}
	return done, nil
}

func recoverReady(target Target, folder Folder, policy Policy, steps Steps) (Done, error) {
	if policy == Discard {
		was, err := Forget(folder)
		if !was || err != nil {
			return Nothing, err
		}
		return Discarded, nil
	}
	f, err := folder.Open(ReadyFile, false)
	if errors.Is(err, fs.ErrNotExist) {
		return Nothing, nil
	}
	if err != nil {
		return Nothing, err
	}
	defer f.Close()
	Reread(f, target) // or the first sync would report what the last run has reported
	j, known, err := inspect(f, steps)
	if err != nil {
		return Nothing, err
	}
	if known {
		if _, err := Forget(folder); !errors.Is(err, syscall.EROFS) {
			return Nothing, err
		}
		return Nothing, nil // nobody can write to the target either
	}
	if err := fits(target, j, policy); err != nil {
		return Nothing, err
	}
	// All of it is read before any of it is written.
	if err := j.Verify(); err != nil {
		return Nothing, err
	}
	// The process may have ended before the rename was durable.
	if err := folder.Sync(); err != nil {
		return Nothing, err
	}
	c := &carrier{target: target, folder: folder, file: f, journal: j, steps: steps}
	return Finished, c.carry(func() (Stamp, error) { return Stamp{}, nil })
}

// inspect opens a committed journal and asks its owner about it.
func inspect(f File, steps Steps) (j *redo.Reader, known bool, err error) {
	size, err := f.Size()
	if err != nil {
		return nil, false, err
	}
	if j, err = redo.NewReader(f, size); err != nil {
		return nil, false, err
	}
	blob, err := j.Blob()
	switch {
	case err != nil:
		return nil, false, err
	case steps.Check != nil:
		known, err = steps.Check(j.After, blob)
	case len(blob) > 0:
		err = ErrOtherOwner
	}
	return j, known, err
}

// fits refuses a target that the journal may not be for.
func fits(target Target, j *redo.Reader, policy Policy) error {
	now, err := target.Stamp()
	if err != nil {
		return err
	}
	if now.Size < min(j.Before, j.After) || now.Size > max(j.Before, j.After) {
		return fmt.Errorf("%w: it has %d bytes, the change that waits for it was made for %d", ErrOther, now.Size, j.Before)
	}
	same, untouched := now.isFor(j.Target)
	switch {
	case policy == Finish, policy == FinishSame && same, untouched:
		return nil
	case policy == FinishSame:
		return fmt.Errorf("%w: another file is in its place", ErrOther)
	}
	return fmt.Errorf("%w, or by the run that was interrupted: that cannot be told", ErrChanged)
}

// Pending reports whether a committed change waits in a folder.
func Pending(folder Folder) (bool, error) {
	f, err := folder.Open(ReadyFile, false)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, f.Close()
}

// Waiting reports, without locking the folder at path, whether a committed change waits in
// it, and what the journal says of its owner. The error wraps one of package redo.
func Waiting(path string) (blob []byte, waits bool, err error) {
	f, err := os.Open(filepath.Join(path, ReadyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, true, err
	}
	j, err := redo.NewReader(f, info.Size())
	if err != nil {
		return nil, true, err
	}
	blob, err = j.Blob()
	return blob, true, err
}

// Forget removes a committed journal, durably, and reports whether there was one. Its
// target stays as it is, which may be between old and new.
func Forget(folder Folder) (bool, error) {
	err := folder.Remove(ReadyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = folder.Sync()
	}
	return true, err
}
