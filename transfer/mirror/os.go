package mirror

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/format/sidecar"
	"tidemark/linux/sysfs"
)

// ErrBusy says that another run holds the mirror.
var ErrBusy = errors.New("another run is using this mirror")

// LockFile is the file of the folder that is locked while the folder is open.
const LockFile = "lock"

// Dir is a Folder on disk. While it is open no other process can open it.
type Dir struct {
	// LeaveRoom has updates fail with ErrNoRoom rather than fill the filesystem.
	LeaveRoom bool

	path string
	dir  *os.File
	lock *os.File
}

// OpenDir opens and locks the folder at path, making it if create is set. The
// error wraps ErrBusy when another process has it open.
func OpenDir(path string, create bool) (*Dir, error) {
	if create {
		if err := os.MkdirAll(path, 0o700); err != nil {
			return nil, err
		}
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(path, LockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		dir.Close()
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		dir.Close()
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrBusy
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	// Who had the lock may have removed the folder, which another has made anew.
	if info, err := lock.Stat(); err != nil || info.Sys().(*syscall.Stat_t).Nlink == 0 {
		dir.Close()
		lock.Close()
		return nil, errors.Join(err, fmt.Errorf("lock %s: %w", path, ErrBusy))
	}
	return &Dir{path: path, dir: dir, lock: lock}, nil
}

// Open implements Folder.
func (d *Dir) Open(name string, create bool) (File, error) {
	flags := os.O_RDWR
	if create {
		flags |= os.O_CREATE | os.O_TRUNC
	}
	f, err := os.OpenFile(filepath.Join(d.path, name), flags, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

// Rename implements Folder.
func (d *Dir) Rename(from, to string) error {
	return os.Rename(filepath.Join(d.path, from), filepath.Join(d.path, to))
}

// Remove implements Folder.
func (d *Dir) Remove(name string) error { return os.Remove(filepath.Join(d.path, name)) }

// Sync implements Folder.
func (d *Dir) Sync() error { return d.dir.Sync() }

// Room tells whether there is room for more; see LeaveRoom.
func (d *Dir) Room() error {
	if !d.LeaveRoom {
		return nil
	}
	return roomOn(d.dir)
}

// Close gives the folder up to others.
func (d *Dir) Close() error { return errors.Join(d.dir.Close(), d.lock.Close()) }

type osFile struct{ *os.File }

func (f osFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// Disk is a Target that is an image file or a block device.
type Disk struct {
	*block.Device
	// LeaveRoom has updates of an image fail with ErrNoRoom rather than fill its
	// filesystem.
	LeaveRoom bool
}

// Room tells whether there is room for more; see LeaveRoom.
func (d Disk) Room() error {
	if !d.LeaveRoom || d.IsDevice() {
		return nil
	}
	return roomOn(d.File())
}

// Resize implements Target. A device that is too small is an error.
func (d Disk) Resize(size int64) error {
	if !d.IsDevice() {
		return d.Truncate(size)
	}
	if have := d.Size(); have < size {
		return fmt.Errorf("%s has %d bytes, the source %d", d.Path(), have, size)
	}
	return nil
}

// Reserve implements Target. A filesystem that cannot reserve says so only when it
// is written to.
func (d Disk) Reserve(e extent.Extent) error {
	if d.IsDevice() {
		return nil
	}
	err := unix.Fallocate(int(d.File().Fd()), unix.FALLOC_FL_KEEP_SIZE, e.Off, e.Len)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "reserve " + e.String(), Path: d.Path(), Err: err}
	}
	return nil
}

// Fingerprint implements Target.
func (d Disk) Fingerprint() (sidecar.Target, error) {
	if d.IsDevice() {
		return deviceFingerprint(d.Device)
	}
	info, err := d.File().Stat()
	if err != nil {
		return sidecar.Target{}, err
	}
	return sidecar.Target{Size: info.Size(), MTime: info.ModTime().UnixNano()}, nil
}

// deviceFingerprint tells no more than the size of a device whose writes nobody
// counts.
func deviceFingerprint(d *block.Device) (sidecar.Target, error) {
	boot, err := sysfs.BootID()
	if err != nil {
		return sidecar.Target{}, err
	}
	c, err := d.Counters()
	if errors.Is(err, block.ErrNoCounters) {
		return sidecar.Target{Size: d.Size()}, nil
	}
	if err != nil {
		return sidecar.Target{}, err
	}
	return sidecar.Target{
		Size: d.Size(), BootID: boot, DiskSeq: d.Identity().DiskSeq, Written: c.Written + c.Discarded,
	}, nil
}
