package mounts

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"tidemark/linux/sysfs"
)

// ErrUnreachable says that every mountpoint of a filesystem is covered by another
// mount, or lies in a mount namespace that this process cannot enter.
var ErrUnreachable = errors.New("no mountpoint can be reached: mount the filesystem once more elsewhere, or unmount what covers it")

// Open opens a directory (or, where only a file is bind-mounted, that file) of
// the filesystem for reading, by any of its mounts that can be reached. Open proves that
// the file is of this filesystem. The error wraps ErrUnreachable and that of the last
// system call.
func (t *Table) Open(f Filesystem) (*os.File, error) {
	var last error
	for _, m := range f.Mounts {
		file, err := f.openAt(m.Path())
		if err == nil {
			return file, nil
		}
		last = err
	}
	return nil, fmt.Errorf("mounts: open %s: %w", f, errors.Join(ErrUnreachable, last))
}

func (f Filesystem) hasMount(id int) bool {
	return slices.ContainsFunc(f.Mounts, func(m Mount) bool { return m.ID == id })
}

// openAt opens path when it leads to a mount of the filesystem. The file is looked at
// through O_PATH first: opening a device node or a pipe would have effects.
func (f Filesystem) openAt(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	id, err := mountID(fd)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	kind := st.Mode & unix.S_IFMT
	switch {
	case !f.hasMount(id), f.Type != "btrfs" && sysfs.DevOf(st.Dev) != f.Dev:
		return nil, &os.PathError{Op: "open", Path: path, Err: errCovered}
	case kind != unix.S_IFDIR && kind != unix.S_IFREG:
		return nil, &os.PathError{Op: "open", Path: path, Err: unix.ENOTDIR}
	}
	again, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(again), path), nil
}

var errCovered = errors.New("covered by another mount")
