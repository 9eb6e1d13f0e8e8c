package store

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"tidemark/linux/atomicfile"
)

// Local returns the tree of files below a folder of this machine. The folder itself is made
// when something is written; what it lies in must be there, so that nothing is written below
// a mount point where nothing is mounted. A symbolic link below the folder is not followed: the
// folder may be another user's, who could have the links of root lead anywhere.
func Local(folder string) Files { return &local{folder: folder} }

type local struct {
	folder string
	mu     sync.Mutex
	root   *os.Root // nil until the folder is there
}

// open returns the folder. Each call is of the same one, whatever is mounted over it meanwhile.
func (l *local) open() (*os.Root, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.root == nil {
		root, err := os.OpenRoot(l.folder)
		if err != nil {
			return nil, err
		}
		l.root = root
	}
	return l.root, nil
}

// inside opens a folder below, link by link of its path.
func (l *local) inside(name string) (*os.File, error) {
	root, err := l.open()
	if err != nil {
		return nil, err
	}
	for at := name; at != "."; at = path.Dir(at) {
		if info, err := root.Lstat(at); err != nil {
			return nil, err
		} else if !info.IsDir() {
			return nil, &fs.PathError{Op: "open", Path: filepath.Join(l.folder, at), Err: unix.ENOTDIR}
		}
	}
	return root.Open(name)
}

func (l *local) Create(name string) (File, error) {
	return l.file(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
}

func (l *local) Open(name string) (ReadFile, error) { return l.file(name, os.O_RDONLY) }

// file opens a file by its folder, which is no link.
func (l *local) file(name string, flags int) (*os.File, error) {
	dir, err := l.inside(path.Dir(name))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	fd, err := unix.Openat(int(dir.Fd()), path.Base(name), flags|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: filepath.Join(l.folder, name), Err: err}
	}
	return os.NewFile(uintptr(fd), filepath.Join(l.folder, name)), nil
}

// Rename asks the kernel to replace nothing. Where the filesystem cannot do that (NFS), a second
// name does the same.
func (l *local) Rename(from, to string) error {
	old, err := l.inside(path.Dir(from))
	if err != nil {
		return err
	}
	defer old.Close()
	dir, err := l.inside(path.Dir(to))
	if err != nil {
		return err
	}
	defer dir.Close()
	a, b := path.Base(from), path.Base(to)
	err = unix.Renameat2(int(old.Fd()), a, int(dir.Fd()), b, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		if err = unix.Linkat(int(old.Fd()), a, int(dir.Fd()), b, 0); err == nil {
			err = unix.Unlinkat(int(old.Fd()), a, 0)
		}
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: filepath.Join(l.folder, from), New: filepath.Join(l.folder, to), Err: err}
	}
	return nil
}

func (l *local) Remove(name string) error {
	dir, err := l.inside(path.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Unlinkat(int(dir.Fd()), path.Base(name), 0); err != nil {
		return &fs.PathError{Op: "remove", Path: filepath.Join(l.folder, name), Err: err}
	}
	return nil
}

func (l *local) Mkdir(name string) error {
	if name == "." {
		return os.Mkdir(l.folder, 0o700)
	}
	dir, err := l.inside(path.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Mkdirat(int(dir.Fd()), path.Base(name), 0o700); err != nil {
		return &fs.PathError{Op: "mkdir", Path: filepath.Join(l.folder, name), Err: err}
	}
	return nil
}

func (l *local) SyncDir(name string) error {
	if name == ".." {
		return atomicfile.SyncDir(filepath.Join(l.folder, name))
	}
	dir, err := l.inside(name)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (l *local) ReadDir(name string) ([]fs.FileInfo, error) {
	dir, err := l.inside(name)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	root, err := l.open()
	if err != nil {
		return nil, err
	}
	var infos []fs.FileInfo
	for _, e := range names {
		info, err := root.Lstat(path.Join(name, e))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		infos = append(infos, info)
	}
	return infos, nil
}

func (l *local) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.root == nil {
		return nil
	}
	root := l.root
	l.root = nil
	return root.Close()
}
