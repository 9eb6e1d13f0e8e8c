// Package target finds the target of a copy by its path, and knows what is known of it: the
// folder beside it, its lock, the state of a mirror, and the list of all mirrors that runs
// on this machine have made or updated.
//
// For most uses, call [Find], and [Status] with the path of a mirror.
//
// The files beside an image DST lie in the folder DST.tidemark; those of a device in a
// folder of the state folder that is named after the device itself, not after its path, so
// that a disk that comes up under another name keeps its mirror. The folder "mirrors" of the
// state folder has the list.
//
// The package does not judge whether a target may be overwritten; packages pairs and restore
// do. A Target is used by one goroutine at a time; functions on different targets may run at
// the same time.
package target

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/transfer/names"
	"tidemark/transfer/origin"
	"tidemark/transfer/transaction"
)

// DefaultStateDir is where the files beside targets that are devices lie.
const DefaultStateDir = "/var/lib/tidemark"

// FolderEnd is what the folder beside an image is called by, behind the image's own name.
const FolderEnd = ".tidemark"

var (
	// ErrRefused says that a target holds, or may hold, what must not be lost. Nothing has
	// been written to it.
	ErrRefused = errors.New("refused")
	// ErrTooSmall and ErrHoldsOther wrap ErrRefused, and say why.
	ErrTooSmall   = fmt.Errorf("%w: it is too small", ErrRefused)
	ErrHoldsOther = fmt.Errorf("%w: it holds something else", ErrRefused)
	// ErrMirror wraps ErrRefused: what is no update of a mirror would make it none.
	ErrMirror = fmt.Errorf("%w: it is a mirror, and would no longer be one", ErrRefused)
	// ErrNoDevice says that a target is named like a device, and is none: a file there would
	// lie in memory, and be gone with the next boot.
	ErrNoDevice = fmt.Errorf("%w: it is no device", ErrRefused)
	// ErrImmutable says that an image has an attribute that keeps everybody from writing to
	// it.
	ErrImmutable = errors.New("it is immutable, or may only be appended to")
	// ErrNoMirror says that nothing is known of a target.
	ErrNoMirror = errors.New("no mirror")
	// ErrPending says that a committed update has not reached a target yet.
	ErrPending = errors.New("an update that was committed waits to be finished")
	// ErrIncomplete says that the first copy to a mirror has not ended.
	ErrIncomplete = errors.New("its first copy has not ended")
)

// Target is where a copy goes. Nothing of it is locked or open until Lock and Open.
type Target struct {
	Name   string // as given, for messages
	Path   string // absolute and without symbolic links
	Folder string // where what is known of it lies
	Exists bool
	Device bool
	Size   int64          // bytes, when it was found
	ID     block.Identity // of a device

	Dir  *transaction.Dir // its folder, once it is locked
	Disk *block.Device    // open for writing
	info fs.FileInfo      // of an image; nil when there was none

	stateDir string
}

// Find looks at what path is now. Nothing need be there. stateDir is DefaultStateDir when
// empty.
func Find(path, stateDir string) (*Target, error) {
	if err := names.Check(path); err != nil {
		return nil, err
	}
	t := &Target{Name: path, Path: names.Absolute(path), stateDir: stateDir}
	info, err := os.Stat(t.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if to, err := os.Readlink(t.Path); err == nil {
			return nil, fmt.Errorf("%s: it is a symbolic link to %s, where nothing is: name that, or remove the link", path, to)
		}
		t.Folder = t.Path + FolderEnd
		return t, nil
	case err != nil:
		return nil, err
	}
	t.Exists = true
	if info.Mode().Type() != os.ModeDevice {
		if !info.Mode().IsRegular() {
			return nil, fmt.Errorf("%s: %w", path, block.ErrUnsupportedFile)
		}
		t.Folder, t.Size, t.info = t.Path+FolderEnd, info.Size(), info
		return t, nil
	}
	t.Device = true
	if t.ID, err = block.Identify(t.Path); err != nil {
		return nil, err
	}
	if t.Size = t.ID.Size; t.Size == 0 {
		return nil, fmt.Errorf("%s: %w", path, origin.ErrNoSize)
	}
	t.Folder = deviceFolder(stateDir, t.ID, t.Path)
	return t, nil
}

func orDefault(stateDir string) string {
	if stateDir == "" {
		return DefaultStateDir
	}
	return stateDir
}

// deviceFolder is where the files of a target lie that is a device: it is named after what
// the device is, where that is known.
func deviceFolder(stateDir string, id block.Identity, path string) string {
	name := origin.StableName(id)
	if origin.Volatile(name) {
		name = "path=" + path
	}
	return filepath.Join(orDefault(stateDir), "devices", Hashed(name))
}

// Owner is the name under which a tracker keeps the mirror's mark.
func (t *Target) Owner() string {
	if t.Device {
		return origin.StableName(t.ID)
	}
	return t.Path
}

// Lock locks the folder of the target. A folder that does not exist is made where
// create says so, and otherwise left alone.
func (t *Target) Lock(create bool) error {
	if t.Dir != nil {
		return nil
	}
	dir, err := transaction.OpenDir(t.Folder, create)
	if !create && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("target: %w", err)
	}
	t.Dir = dir
	return nil
}

// Open opens the target for writing, and claims a device. An image is made where there is
// none; a device must have size bytes.
func (t *Target) Open(size int64) (err error) {
	if !t.Exists {
		if err := transaction.CreateImage(t.Path, 0o600); err != nil {
			return err
		}
	}
	if t.Disk, err = block.Open(t.Path, block.Options{Write: true, Exclusive: true}); err != nil {
		if errors.Is(err, unix.EPERM) && immutable(t.Path) {
			err = fmt.Errorf("%s: %w", t.Path, ErrImmutable)
		}
		return err
	}
	if !t.isDisk() {
		return fmt.Errorf("%s: %w: it was replaced just now", t.Path, ErrRefused)
	}
	if t.Device && t.Disk.Size() < size {
		return fmt.Errorf("%s: %w: it has %d bytes, the source has %d", t.Path, ErrTooSmall, t.Disk.Size(), size)
	}
	return nil
}

// immutable reports whether a file has an attribute that forbids to write to it.
func immutable(path string) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_BASIC_STATS, &st)
	return err == nil && st.Attributes&(unix.STATX_ATTR_IMMUTABLE|unix.STATX_ATTR_APPEND) != 0
}

// isDisk reports whether what was opened is what was judged.
func (t *Target) isDisk() bool {
	if t.Device {
		return t.Disk.Identity() == t.ID
	}
	info, err := t.Disk.File().Stat()
	return err == nil && (t.info == nil || os.SameFile(info, t.info))
}

// Dissolve gives up the folder, and removes it when nothing but its lock is in it.
func (t *Target) Dissolve() error {
	dir := t.Dir
	t.Dir = nil
	return dir.Dissolve()
}

// IsThere reports whether the path still leads to the image that is open.
func (t *Target) IsThere() bool {
	at, err := os.Stat(t.Path)
	if err != nil {
		return false
	}
	open, err := t.Disk.File().Stat()
	return err == nil && os.SameFile(at, open)
}

// Close closes what is open, and gives up the lock.
func (t *Target) Close() error {
	var errs []error
	if t.Dir != nil {
		errs = append(errs, t.Dir.Close())
	}
	if t.Disk != nil {
		errs = append(errs, t.Disk.Close())
	}
	return errors.Join(errs...)
}
