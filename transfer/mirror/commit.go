package mirror

import (
	"errors"
	"fmt"
	"io/fs"

	"tidemark/extent"
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

// Seal prepares the update for Publish: what was put becomes durable, and so does
// the state that goes with it. change edits that state: mark, time, source and
// history. The mirror is still the old one.
func (u *Update) Seal(change func(*sidecar.State)) error {
	s := u.store
	u.next = s.state
	u.next.Update++
	u.next.Size = u.size
	u.next.Complete, u.next.Copied, u.next.Foreign = true, 0, false
	change(&u.next)
	if err := u.sealAs(); err != nil {
		return fmt.Errorf("mirror: commit: %w", err)
	}
	return nil
}

func (u *Update) sealAs() error {
	switch {
	case u.inPlace:
		return u.store.syncData()
	case !u.Journaled():
		return nil
	}
	now, err := u.store.target.Fingerprint()
	if err != nil {
		return err
	}
	if why := changed(u.store.seen, now); why != "" {
		return fmt.Errorf("%w: %s", ErrTargetChanged, why)
	}
	if err := u.reserve(); err != nil {
		return err
	}
	return u.seal(u.next)
}

// Journaled reports whether there is anything but a new mark to commit that is not on
// the target yet: blocks, or the size, which someone else may have changed.
func (u *Update) Journaled() bool {
	return !u.inPlace && (u.journal != nil || u.size != u.store.state.Size || !fits(u.store.seen, u.size))
}

// reserve makes sure that the target has room for all that the journal will write
// to it: a full disk is noticed while the mirror is the old one. Reserving touches
// the target's times but not its content, so that how it looks is noted anew; a
// state that does not trust the target goes on not trusting it.
func (u *Update) reserve() error {
	s := u.store
	var failed error
	for _, e := range extent.NewSet(u.data...).Extents() {
		if failed = reserve(s.target, e); failed != nil {
			break
		}
	}
	now, err := s.target.Fingerprint()
	if err == nil && s.suspect == "" {
		s.state.Target = now
	}
	s.seen = now
	return errors.Join(failed, err)
}

// Publish makes the sealed update what the mirror is, in one step: from now on it
// will be finished, if not by Finish then by the next Open. After an error Committed
// says whether that is so nevertheless.
func (u *Update) Publish() error {
	var err error
	switch {
	case u.inPlace:
		if err = u.store.stamp(&u.next); err == nil {
			err = u.store.saveState(u.next)
		}
	case !u.Journaled():
		u.next.Target = u.store.seen
		err = u.store.saveState(u.next)
	default:
		if err = u.store.folder.Rename(journalFile, readyFile); err == nil {
			u.committed = true
			err = u.store.folder.Sync()
		}
	}
	if err != nil {
		return fmt.Errorf("mirror: commit: %w", err)
	}
	u.committed = true
	return nil
}

// Committed reports whether the update will be finished, if not by Finish then by the
// next Open: a journal in its place is brought to the target even when its folder
// could not be synced.
func (u *Update) Committed() bool { return u.committed }

// Finish brings the published update to the target. One that someone else has
// written to since Seal is not trusted afterwards. Who writes while Finish does is
// not told from it: its own writes change how the target looks, by how much nobody
// knows.
func (u *Update) Finish() error {
	if !u.Journaled() {
		return nil
	}
	now, err := u.store.target.Fingerprint()
	if err != nil {
		return fmt.Errorf("mirror: commit: %w", err)
	}
	stamp := u.store.stamp
	if changed(u.store.seen, now) != "" {
		stamp = unstamped
	}
	f, err := u.store.folder.Open(readyFile, false)
	if err != nil {
		return fmt.Errorf("mirror: commit: %w", err)
	}
	defer f.Close()
	if err := u.store.apply(f, stamp); err != nil {
		return fmt.Errorf("mirror: commit: %w", err)
	}
	return nil
}

// unstamped leaves the state that is about to be saved without a fingerprint, so that
// the next run checks the target.
func unstamped(*sidecar.State) error { return nil }

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
