package transaction

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"tidemark/linux/atomicfile"
)

// ErrBusy says that another process has a folder open.
var ErrBusy = errors.New("another run is using this target")

// LockFile is the file of a Dir that is locked while the Dir is open.
const LockFile = "lock"

// Dir is a Folder on disk. While it is open no other process can open it.
type Dir struct {
	// LeaveRoom has journals fail with ErrNoRoom rather than fill the filesystem of
	// the folder.
	LeaveRoom bool

	path string
	dir  *os.File
	lock *os.File // nil on a read-only filesystem that has none
}

// OpenDir opens and locks the folder at path, making it, durably, if create is set. The
// error wraps ErrBusy when another process has it open. On a read-only filesystem, where
// nobody can write, its files can be read, by several processes at a time.
func OpenDir(path string, create bool) (*Dir, error) {
	if create {
		if err := atomicfile.MkdirAll(path, 0o700); err != nil {
			return nil, err
		}
		// Also when it was there: the process that made it may have died before.
		if err := syncParents(path); err != nil {
			return nil, err
		}
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	lock, err := lockIn(dir)
	if err != nil {
		dir.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return &Dir{path: path, dir: dir, lock: lock}, nil
}

// lockIn locks the folder that is open, whatever its path leads to by now. It returns nil
// where the filesystem is read-only and has no lock.
func lockIn(dir *os.File) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), LockFile, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.ENOENT) {
		return nil, ErrBusy // the process that had it has just removed the folder
	}
	how := unix.LOCK_EX
	if errors.Is(err, unix.EROFS) {
		how = unix.LOCK_SH
		fd, err = unix.Openat(int(dir.Fd()), LockFile, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			return nil, nil
		}
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: filepath.Join(dir.Name(), LockFile), Err: err}
	}
	lock := os.NewFile(uintptr(fd), filepath.Join(dir.Name(), LockFile))
	if err := unix.Flock(int(lock.Fd()), how|unix.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrBusy
		}
		return nil, err
	}
	// The process that had the lock may have removed the folder, and another one made
	// it anew.
	if info, err := lock.Stat(); err != nil || info.Sys().(*syscall.Stat_t).Nlink == 0 {
		lock.Close()
		return nil, errors.Join(err, ErrBusy)
	}
	return lock, nil
}

// syncParents makes the name of a folder, and of those it lies in that may have been made
// with it, survive a power cut.
func syncParents(path string) error {
	for range 3 { // the state folder, and two in it
		path = filepath.Dir(path)
		if err := atomicfile.SyncDir(path); err != nil {
			return err
		}
	}
	return nil
}

// Path returns the path of the folder.
func (d *Dir) Path() string { return d.path }

// Open implements Folder. Journals, and files whose name begins with "image", go past the
// page cache where they can.
func (d *Dir) Open(name string, create bool) (File, error) {
	flags := os.O_RDWR
	if create {
		flags |= os.O_CREATE | os.O_TRUNC
	}
	f, err := os.OpenFile(filepath.Join(d.path, name), flags, 0o600)
	if errors.Is(err, unix.EROFS) && !create {
		f, err = os.Open(filepath.Join(d.path, name))
	}
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(name, journalFile) || strings.HasPrefix(name, "image") {
		return newFile(f), nil
	}
	return &osFile{File: f}, nil
}

// Rename implements Folder.
func (d *Dir) Rename(from, to string) error {
	return os.Rename(filepath.Join(d.path, from), filepath.Join(d.path, to))
}

// Remove implements Folder.
func (d *Dir) Remove(name string) error { return os.Remove(filepath.Join(d.path, name)) }

// Sync implements Folder.
func (d *Dir) Sync() error { return d.dir.Sync() }

// Now tells the time of the filesystem of a target, where that is the folder's too, by
// touching the lock.
func (d *Dir) Now(target Target) (int64, bool) {
	disk, ok := target.(Disk)
	if !ok || d.lock == nil {
		return 0, false
	}
	var at, here unix.Stat_t
	touch := []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}}
	if unix.UtimesNanoAt(int(d.dir.Fd()), LockFile, touch, 0) != nil ||
		unix.Fstat(int(d.lock.Fd()), &here) != nil || unix.Fstat(int(disk.File().Fd()), &at) != nil {
		return 0, false
	}
	return here.Mtim.Nano(), here.Dev == at.Dev
}

// Dissolve removes the folder if nothing is in it but the lock, and gives it up to others.
func (d *Dir) Dissolve() error {
	names, err := os.ReadDir(d.path)
	if err == nil && len(names) == 1 && names[0].Name() == LockFile {
		err = errors.Join(os.Remove(filepath.Join(d.path, LockFile)), os.Remove(d.path))
		if errors.Is(err, unix.ENOTEMPTY) { // somebody waits for it already
			err = nil
		}
	}
	return errors.Join(err, d.Close())
}

// Close gives the folder up to others.
func (d *Dir) Close() error {
	if d.lock == nil {
		return d.dir.Close()
	}
	return errors.Join(d.dir.Close(), d.lock.Close())
}
