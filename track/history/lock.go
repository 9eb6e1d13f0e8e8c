package history

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lockPoll is how often a lock that another process holds is tried again.
	lockPoll     = 2 * time.Millisecond
	readerPrefix = "reader-"
)

// LockFile is the path of the lock of the history in a folder.
func LockFile(dir string) string { return filepath.Join(dir, "history") }

// Lock takes the lock of the file at path, and waits for another holder until ctx ends;
// the process's end is the lock's at the latest. A file that is there is only read, so
// that a frozen filesystem does not hold up the caller. Else it is made, which fails with
// ErrUnwritable where it cannot.
func Lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o600)
		err = Unwritable(err)
	}
	if err != nil {
		return nil, fmt.Errorf("track: lock: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("track: lock %s: %w", path, err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("track: lock %s: held by another process: %w", path, ctx.Err()), f.Close())
		case <-time.After(lockPoll):
		}
	}
}

// Reader is an open tracker that may hold marks that no lease names.
type Reader struct{ f *os.File }

// NewReader says that from the given epoch on, which is the open one, marks may be
// held. The lock must be held.
func (h *History) NewReader(epoch uint64) (*Reader, error) {
	f, err := os.CreateTemp(h.Dir, readerPrefix+"*")
	if err != nil {
		return nil, Unwritable(err)
	}
	_, err = fmt.Fprintf(f, "%d\n", epoch)
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		return nil, errors.Join(Unwritable(err), f.Close(), os.Remove(f.Name()))
	}
	return &Reader{f: f}, nil
}

// Close says that no marks are held any more but those of leases.
func (r *Reader) Close() error { return errors.Join(os.Remove(r.f.Name()), r.f.Close()) }

// oldestReader returns the first epoch that a reader may hold a mark of, now when there
// is none. Files of processes that ended are removed.
func oldestReader(dir string, now uint64) (uint64, error) {
	names, err := filepath.Glob(filepath.Join(dir, readerPrefix+"*"))
	for _, name := range names {
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("track: %w", err)
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			err = os.Remove(name)
		} else {
			epoch := uint64(0) // unreadable: spare everything
			fmt.Fscan(f, &epoch)
			now = min(now, epoch)
		}
		f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, fmt.Errorf("track: %w", err)
		}
	}
	return now, err
}
