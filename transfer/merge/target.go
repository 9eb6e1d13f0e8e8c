package merge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/transfer/inuse"
	"tidemark/transfer/target"
	"tidemark/transfer/transaction"
)

// Target is an open target, locked against other runs.
type Target struct {
	// Recovered tells in words what Open found to finish or discard, "" if nothing.
	Recovered string

	place *target.Target
}

// Judge returns nil where the image or device at path, which must be there, may be written
// to: it is in use by nobody, and no mirror. The error wraps fs.ErrNotExist,
// inuse.ErrInUse or target.ErrMirror.
func Judge(path, stateDir string) error {
	place, err := find(path, stateDir)
	if err != nil {
		return err
	}
	return errors.Join(place.RefuseMirror(), place.RefuseUsed(), place.RefuseOpeners())
}

func find(path, stateDir string) (*target.Target, error) {
	place, err := target.Find(path, stateDir)
	if err == nil && !place.Exists {
		err = fmt.Errorf("target: %w", &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist})
	}
	return place, err
}

// Open opens the image or device at path, which Judge approves of, for writing, and first
// finishes a change that was committed and has not reached it: half of it may be there, and
// nothing else makes that whole. stateDir is target.DefaultStateDir when empty.
func Open(path, stateDir string) (_ *Target, err error) {
	place, err := find(path, stateDir)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(place.RefuseMirror(), place.RefuseUsed()); err != nil {
		return nil, err
	}
	if err := place.Lock(true); err != nil {
		return nil, err
	}
	t := &Target{place: place}
	if err := t.open(); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

func (t *Target) open() error {
	// The folder is locked: another run of ours is none of those that are found.
	if err := errors.Join(t.place.RefuseMirror(), t.place.RefuseOpeners()); err != nil {
		return err
	}
	if err := t.place.Open(0); errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%s: %w (claimed by a program or the kernel)", t.place.Path, inuse.ErrInUse)
	} else if err != nil {
		return fmt.Errorf("target: %w", err)
	}
	done, err := transaction.Recover(t.disk(), t.place.Dir, transaction.FinishSame, transaction.Steps{})
	if err != nil {
		if pending, perr := transaction.Pending(t.place.Dir); pending || perr != nil {
			err = fmt.Errorf("target: %w: %w", ErrPending, err)
		}
		return err
	}
	t.Recovered = string(done)
	return nil
}

// Device returns the open target, which stays the Target's.
func (t *Target) Device() *block.Device { return t.place.Disk }

func (t *Target) disk() transaction.Disk { return transaction.Disk{Device: t.place.Disk} }

// Write brings the pieces of a job to the target; see Job.Write.
func (t *Target) Write(ctx context.Context, j Job, direct bool) (Report, error) {
	return j.Write(ctx, t.disk(), direct)
}

// Commit brings them to it in one transaction; see Job.Commit.
func (t *Target) Commit(ctx context.Context, j Job) (Report, error) {
	return j.Commit(ctx, t.disk(), t.place.Dir)
}

// Close gives the target up to others.
func (t *Target) Close() error { return errors.Join(t.place.Dissolve(), t.place.Close()) }
