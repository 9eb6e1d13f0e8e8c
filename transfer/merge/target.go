package merge

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/transfer/inuse"
	"tidemark/transfer/pairs"
	"tidemark/transfer/transaction"
)

var (
	// ErrRefused says that a target must not be written to.
	ErrRefused = errors.New("refused")
	// ErrMirror refuses a target that is a mirror, and would no longer be one. The error
	// wraps ErrRefused as well.
	ErrMirror = fmt.Errorf("%w: it is a mirror, and would no longer be one", ErrRefused)
)

// Target is an open target, locked against other runs.
type Target struct {
	*block.Device
	// Recovered tells in words what Open found to finish or discard, "" if nothing.
	Recovered string

	dir *transaction.Dir
}

// Judge returns nil where the image or device at path may be written to: it is in use by
// nobody, and no mirror. The error wraps inuse.ErrInUse or ErrRefused.
func Judge(path, stateDir string) error {
	if err := inuse.Check(path); err != nil {
		return err
	}
	return refuseMirror(path, stateDir)
}

func refuseMirror(path, stateDir string) error {
	switch _, err := pairs.Status(path, stateDir); {
	case err == nil:
		return fmt.Errorf("%s: %w", path, ErrMirror)
	case !errors.Is(err, pairs.ErrNoMirror):
		return err
	}
	return nil
}

// Open opens the image or device at path, which Judge approves of, for writing, and first
// finishes a change that was committed and has not reached it. stateDir is
// pairs.DefaultStateDir when empty.
func Open(path, stateDir string) (_ *Target, err error) {
	place, err := pairs.Find(path, stateDir)
	if err != nil {
		return nil, err
	}
	if !place.Exists {
		return nil, fmt.Errorf("target: %s: there is nothing", path)
	}
	if err := errors.Join(inuse.Held(path), refuseMirror(path, stateDir)); err != nil {
		return nil, err
	}
	t := &Target{}
	if t.dir, err = transaction.OpenDir(place.Folder, true); err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	if err := t.open(path, stateDir); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

func (t *Target) open(path, stateDir string) (err error) {
	// Behind the lock, so that another run of ours is nobody.
	if err := errors.Join(refuseMirror(path, stateDir), inuse.Opened(path)); err != nil {
		return err
	}
	t.Device, err = block.Open(path, block.Options{Write: true, Exclusive: true})
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%s: %w (claimed by a program or the kernel)", path, inuse.ErrInUse)
	}
	if err != nil {
		return fmt.Errorf("target: %w", err)
	}
	done, err := transaction.Recover(t.disk(), t.dir, transaction.FinishUntouched, transaction.Steps{})
	if err != nil {
		if pending, perr := transaction.Pending(t.dir); pending || perr != nil {
			err = fmt.Errorf("target: %w: %w", ErrPending, err)
		}
		return err
	}
	t.Recovered = string(done)
	return nil
}

func (t *Target) disk() transaction.Disk { return transaction.Disk{Device: t.Device} }

// Write brings the pieces of a job to the target; see Job.Write.
func (t *Target) Write(ctx context.Context, j Job, direct bool) (Report, error) {
	return j.Write(ctx, t.disk(), direct)
}

// Commit brings them to it in one transaction; see Job.Commit.
func (t *Target) Commit(ctx context.Context, j Job) (Report, error) {
	return j.Commit(ctx, t.disk(), t.dir)
}

// Close gives the target up to others.
func (t *Target) Close() error {
	var err error
	if t.Device != nil {
		err = t.Device.Close()
	}
	return errors.Join(err, t.dir.Dissolve())
}
