package apply

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/format/redo"
	"tidemark/transfer/mirror"
)

// Dir is the Place beside a target on disk. While it is open no other process can
// open it, nor make the target a mirror.
type Dir struct {
	*mirror.Dir
	path   string
	target string
	mode   fs.FileMode
}

// OpenDir opens and locks the folder at path, which belongs to target, making it
// if need be. mode is that of a target that Publish makes. The error wraps
// mirror.ErrBusy when another process has the folder open.
func OpenDir(path, target string, mode fs.FileMode) (*Dir, error) {
	// The folder may have to be made; where the target lies must be there.
	if _, err := os.Stat(filepath.Dir(target)); err != nil {
		return nil, err
	}
	dir, err := mirror.OpenDir(path, true)
	if err != nil {
		return nil, err
	}
	d := &Dir{Dir: dir, path: path, target: target, mode: mode}
	if err := syncParents(path); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// syncParents makes the name of a folder, and of those it lies in that may have
// been made with it, survive a power cut.
func syncParents(path string) error {
	for range 3 { // the state folder, and two in it
		path = filepath.Dir(path)
		if err := syncDir(path); err != nil {
			return err
		}
	}
	return nil
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Open implements mirror.Folder. It moves large data past the page cache where
// the filesystem can.
func (d *Dir) Open(name string, create bool) (mirror.File, error) {
	flags, mode := os.O_RDWR, fs.FileMode(0o600)
	if create {
		flags |= os.O_CREATE | os.O_TRUNC
	}
	if name == imageFile {
		mode = d.mode
	}
	f, err := os.OpenFile(filepath.Join(d.path, name), flags, mode)
	if err != nil {
		return nil, err
	}
	return newTwin(f), nil
}

// Publish implements Place.
func (d *Dir) Publish(name string) error {
	from := filepath.Join(d.path, name)
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, d.target, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // no such flag here
		if err = os.Link(from, d.target); err == nil {
			err = os.Remove(from)
		}
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: d.target, Err: err}
	}
	return syncDir(filepath.Dir(d.target))
}

// Close gives the folder up to others, and removes it if nothing is in it but the
// lock.
func (d *Dir) Close() error {
	names, err := os.ReadDir(d.path)
	if err == nil && len(names) == 1 && names[0].Name() == mirror.LockFile {
		err = errors.Join(os.Remove(filepath.Join(d.path, mirror.LockFile)), os.Remove(d.path))
		if errors.Is(err, unix.ENOTEMPTY) { // somebody waits for it already
			err = nil
		}
	}
	return errors.Join(err, d.Dir.Close())
}

// Image is a target that is an image file or a block device. It moves large data
// past the page cache where it can.
type Image struct {
	mirror.Disk
	twin *twin
}

// NewImage returns the Image of an open device, which stays the caller's. It has
// to be closed first.
func NewImage(d *block.Device) Image {
	return Image{Disk: mirror.Disk{Device: d}, twin: newTwin(d.File())}
}

// ReadAt implements mirror.Target.
func (i Image) ReadAt(p []byte, off int64) (int, error) { return i.twin.ReadAt(p, off) }

// WriteAt implements mirror.Target.
func (i Image) WriteAt(p []byte, off int64) (int, error) { return i.twin.WriteAt(p, off) }

// Reserve implements mirror.Target.
func (i Image) Reserve(e extent.Extent) error {
	if err := i.Disk.Reserve(e); err != nil {
		return fmt.Errorf("room in the target: %w", err)
	}
	return nil
}

// Clone lets a file on a filesystem that can do it (XFS, Btrfs and others) share
// the blocks of the journal.
func (i Image) Clone(f mirror.File, at int64, e redo.Entry) bool {
	from, ok := f.(*twin)
	if !ok || i.IsDevice() {
		return false
	}
	return unix.IoctlFileCloneRange(int(i.File().Fd()), &unix.FileCloneRange{
		Src_fd: int64(from.Fd()), Src_offset: uint64(at), Src_length: uint64(e.Len), Dest_offset: uint64(e.Off),
	}) == nil
}

// Close closes what NewImage opened.
func (i Image) Close() error { return i.twin.closeDirect() }

// twin is a file that is open twice: what is aligned goes past the page cache,
// where there is direct I/O, and the rest through it. The kernel keeps both views
// of a file in step, page by page.
type twin struct {
	*os.File
	direct *os.File // nil without direct I/O
}

// newTwin opens f a second time, by descriptor, which cannot be another file by
// now.
func newTwin(f *os.File) *twin {
	t := &twin{File: f}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err == nil {
		t.direct = os.NewFile(uintptr(fd), f.Name())
	}
	return t
}

func (t *twin) fits(p []byte, off int64) bool {
	return t.direct != nil && len(p) > 0 && len(p)%pageSize == 0 && off%pageSize == 0
}

// ReadAt implements io.ReaderAt.
func (t *twin) ReadAt(p []byte, off int64) (int, error) {
	if t.fits(p, off) {
		if n, err := t.direct.ReadAt(p, off); !errors.Is(err, unix.EINVAL) {
			return n, err
		}
	}
	return t.File.ReadAt(p, off)
}

// WriteAt implements io.WriterAt. A filesystem, or memory, that is not aligned
// enough answers EINVAL.
func (t *twin) WriteAt(p []byte, off int64) (int, error) {
	if t.fits(p, off) {
		if n, err := t.direct.WriteAt(p, off); !errors.Is(err, unix.EINVAL) {
			return n, err
		}
	}
	return t.File.WriteAt(p, off)
}

// Size implements mirror.File.
func (t *twin) Size() (int64, error) {
	info, err := t.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// Close closes both.
func (t *twin) Close() error { return errors.Join(t.closeDirect(), t.File.Close()) }

func (t *twin) closeDirect() error {
	if t.direct == nil {
		return nil
	}
	return t.direct.Close()
}
