package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"tidemark/linux/atomicfile"
)

// Local returns the tree of files below a folder of this machine. The folder itself is made
// when something is written; what it lies in must be there, so that nothing is written below
// a mount point where nothing is mounted.
func Local(root string) Files { return local{root} }

type local struct{ root string }

func (l local) path(name string) string { return filepath.Join(l.root, filepath.FromSlash(name)) }

func (l local) Create(name string) (File, error) {
	return os.OpenFile(l.path(name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}

func (l local) Open(name string) (ReadFile, error) {
	return os.OpenFile(l.path(name), os.O_RDONLY|unix.O_NOFOLLOW, 0)
}

// Rename asks the kernel to replace nothing. Where the filesystem cannot do that (NFS), a second
// name does the same.
func (l local) Rename(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, l.path(from), unix.AT_FDCWD, l.path(to), unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		if err = os.Link(l.path(from), l.path(to)); err == nil {
			err = os.Remove(l.path(from))
		}
		return err
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: l.path(from), New: l.path(to), Err: err}
	}
	return nil
}

func (l local) Remove(name string) error { return os.Remove(l.path(name)) }

func (l local) Mkdir(name string) error { return os.Mkdir(l.path(name), 0o700) }

func (l local) SyncDir(name string) error { return atomicfile.SyncDir(l.path(name)) }

func (l local) ReadDir(name string) ([]fs.FileInfo, error) {
	entries, err := os.ReadDir(l.path(name))
	if err != nil {
		return nil, err
	}
	var infos []fs.FileInfo
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		infos = append(infos, info)
	}
	return infos, nil
}

func (l local) Close() error { return nil }
