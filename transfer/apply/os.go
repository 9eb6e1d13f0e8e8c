package apply

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"tidemark/linux/atomicfile"
	"tidemark/transfer/transaction"
)

// Dir is the Place beside a target on disk. While it is open no other process can open it,
// nor make the target a mirror.
type Dir struct {
	*transaction.Dir
	target string
	mode   fs.FileMode
}

// OpenDir opens and locks the folder at path, which belongs to target, making it if need
// be. mode is that of a target that Publish makes. The error wraps transaction.ErrBusy when
// another process has the folder open.
func OpenDir(path, target string, mode fs.FileMode) (*Dir, error) {
	// The folder may have to be made; where the target lies must be there.
	if _, err := os.Stat(filepath.Dir(target)); err != nil {
		return nil, err
	}
	dir, err := transaction.OpenDir(path, true)
	if err != nil {
		return nil, err
	}
	return &Dir{Dir: dir, target: target, mode: mode}, nil
}

// Open implements transaction.Folder.
func (d *Dir) Open(name string, create bool) (transaction.File, error) {
	if name == imageFile && create {
		f, err := os.OpenFile(filepath.Join(d.Path(), name), os.O_WRONLY|os.O_CREATE, d.mode)
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			return nil, err
		}
	}
	return d.Dir.Open(name, create)
}

// Publish implements Place.
func (d *Dir) Publish(name string) error {
	from := filepath.Join(d.Path(), name)
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, d.target, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // no such flag here
		if err = os.Link(from, d.target); err == nil {
			err = os.Remove(from)
		}
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: d.target, Err: err}
	}
	return atomicfile.SyncDir(filepath.Dir(d.target))
}

// Close gives the folder up to others, and removes it if nothing is in it but the
// lock.
func (d *Dir) Close() error { return d.Dissolve() }
