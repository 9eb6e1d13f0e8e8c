package mirror

import (
	"errors"
	"fmt"
	"io/fs"

	"tidemark/format/sidecar"
)

// Checkpoint makes what a first copy has written so far durable: the blocks
// before copied (bytes) hold what the source held at mark or later. A later run
// goes on from there. Puts behind copied may be under way, unless this is the
// last thing done to the update.
func (u *Update) Checkpoint(copied int64, mark string, last bool) error {
	if err := u.checkpoint(copied, mark, last); err != nil {
		return fmt.Errorf("mirror: checkpoint: %w", err)
	}
	return nil
}

func (u *Update) checkpoint(copied int64, mark string, last bool) error {
	s := u.store
	if err := s.syncData(); err != nil {
		return err
	}
	next := s.state
	next.Copied, next.Mark = copied, mark
	if !last || u.tainted.Load() {
		next.Target = sidecar.Target{}
	} else if err := s.stamp(&next); err != nil {
		return err
	}
	return s.saveState(next)
}

// ErrTargetChanged says that someone else wrote to the target during the run.
var ErrTargetChanged = errors.New("target was changed by someone else during the run")

// Commit makes the update what the mirror is. change edits the state that goes
// with it: mark, time, source and history. After an error the next Open finds
// the mirror old, or finishes the update; it never stays between.
func (u *Update) Commit(change func(*sidecar.State)) error {
	s := u.store
	next := s.state
	next.Update++
	next.Size = u.size
	next.Complete, next.Copied, next.Foreign = true, 0, false
	change(&next)
	var err error
	switch {
	case u.inPlace:
		err = u.commitInPlace(next)
	case u.journal == nil && u.size == s.state.Size:
		next.Target = s.seen
		err = s.saveState(next)
	default:
		err = u.commitJournal(next)
	}
	if err != nil {
		return fmt.Errorf("mirror: commit: %w", err)
	}
	return nil
}

func (u *Update) commitInPlace(next sidecar.State) error {
	if err := u.store.syncData(); err != nil {
		return err
	}
	if err := u.store.stamp(&next); err != nil {
		return err
	}
	return u.store.saveState(next)
}

func (u *Update) commitJournal(next sidecar.State) error {
	now, err := u.store.target.Fingerprint()
	if err != nil {
		return err
	}
	if why := differs(u.store.seen, now); why != "" {
		return fmt.Errorf("%w: %s", ErrTargetChanged, why)
	}
	if err := u.seal(next); err != nil {
		return err
	}
	folder := u.store.folder
	if err := folder.Rename(journalFile, readyFile); err != nil {
		return err
	}
	if err := folder.Sync(); err != nil {
		return err
	}
	f, err := folder.Open(readyFile, false)
	if err != nil {
		return err
	}
	defer f.Close()
	return u.store.apply(f)
}

// seal completes the journal and makes it durable.
func (u *Update) seal(next sidecar.State) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := u.openJournal(); err != nil { // the size alone may have changed
		return err
	}
	if err := u.journal.Done(next); err != nil {
		return err
	}
	if err := u.out.Flush(); err != nil {
		return err
	}
	if err := u.file.Sync(); err != nil {
		return err
	}
	f := u.file
	u.file = nil
	return f.Close()
}

// Abort forgets the update. What a first copy wrote since its last checkpoint is
// written again by the next run.
func (u *Update) Abort() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.file == nil {
		return nil
	}
	err := u.file.Close()
	u.file = nil
	if rerr := u.store.folder.Remove(journalFile); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}
