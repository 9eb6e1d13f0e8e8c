package store

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sync"
	"time"

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
	root   *os.File // nil until the folder is there
}

// open returns the folder. Each call is of the same one, whatever is mounted over it meanwhile.
func (l *local) open() (*os.File, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.root == nil {
		root, err := os.OpenFile(l.folder, os.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return nil, err
		}
		l.root = root
	}
	return l.root, nil
}

// at opens a name below the folder. The kernel follows no link, and leads out of the folder by no name.
func (l *local) at(name string, flags int) (fd int, err error) {
	root, err := l.open()
	if err != nil {
		return -1, err
	}
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	if flags&unix.O_CREAT != 0 {
		how.Mode = 0o600
	}
	for {
		if fd, err = unix.Openat2(int(root.Fd()), name, &how); err == nil {
			return fd, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return -1, &fs.PathError{Op: "open", Path: filepath.Join(l.folder, name), Err: err}
		}
	}
}

// inside opens a folder below. The caller closes it.
func (l *local) inside(name string) (fd int, err error) { return l.at(name, unix.O_DIRECTORY) }

func (l *local) Create(name string) (File, error) {
	f, err := l.file(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return nil, err
	}
	return uncached{f}, nil
}

func (l *local) Open(name string) (ReadFile, error) { return l.file(name, os.O_RDONLY) }

func (l *local) file(name string, flags int) (*os.File, error) {
	fd, err := l.at(name, flags|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
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
	defer unix.Close(old)
	dir, err := l.inside(path.Dir(to))
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	a, b := path.Base(from), path.Base(to)
	err = unix.Renameat2(old, a, dir, b, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		if err = unix.Linkat(old, a, dir, b, 0); err == nil {
			err = unix.Unlinkat(old, a, 0)
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
	defer unix.Close(dir)
	if err := unix.Unlinkat(dir, path.Base(name), 0); err != nil {
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
	defer unix.Close(dir)
	if err := unix.Mkdirat(dir, path.Base(name), 0o700); err != nil {
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
	f := os.NewFile(uintptr(dir), filepath.Join(l.folder, name))
	return errors.Join(f.Sync(), f.Close())
}

func (l *local) ReadDir(name string) ([]fs.FileInfo, error) {
	fd, err := l.inside(name)
	if err != nil {
		return nil, err
	}
	dir := os.NewFile(uintptr(fd), filepath.Join(l.folder, name))
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	infos := make([]fs.FileInfo, 0, len(names))
	for _, e := range names {
		i := info{name: e}
		err := unix.Fstatat(fd, e, &i.stat, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			continue
		} else if err != nil {
			return nil, &fs.PathError{Op: "stat", Path: filepath.Join(l.folder, name, e), Err: err}
		}
		infos = append(infos, i)
	}
	return infos, nil
}

// info is what a folder's filesystem says of a name in it.
type info struct {
	name string
	stat unix.Stat_t
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.stat.Size }
func (i info) ModTime() time.Time { return time.Unix(i.stat.Mtim.Unix()) }
func (i info) IsDir() bool        { return i.Mode().IsDir() }
func (i info) Sys() any           { return nil }

// Mode tells folders and files from all else.
func (i info) Mode() fs.FileMode {
	mode := fs.FileMode(i.stat.Mode & 0o777)
	switch i.stat.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return mode
	case unix.S_IFDIR:
		return mode | fs.ModeDir
	}
	return mode | fs.ModeIrregular
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
