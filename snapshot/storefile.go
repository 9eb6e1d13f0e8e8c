package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// identify notes by what the file of a store, and its folder, are known again.
func (s *Store) identify(f *os.File) (err error) {
	if s.File, err = identity(f); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(s.Path))
	if err != nil {
		return err
	}
	defer dir.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		return &os.PathError{Op: "statfs", Path: dir.Name(), Err: err}
	}
	if st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC {
		return nil // it goes with the boot
	}
	s.Folder, err = identity(dir)
	return err
}

// is reports whether a file is that of the store. One that the record does not know was made a
// moment before a crash, and is empty.
func (s *Store) is(f *os.File) (bool, error) {
	if s.File == "" {
		info, err := f.Stat()
		return err == nil && info.Mode().IsRegular() && info.Size() == 0, err
	}
	id, err := identity(f)
	return id == s.File, err
}

// inFolder reports whether the path of the store's file leads into the folder that the file was
// made in: another filesystem, or none, may be mounted there by now.
func (s *Store) inFolder(path string) (bool, error) {
	if s.Folder == "" {
		return true, nil
	}
	dir, err := os.Open(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer dir.Close()
	id, err := identity(dir)
	return id == s.Folder, err
}

// identity tells a file from others, also from one that gets its name or its number: by the number
// and the time of its birth, where the filesystem knows that.
func identity(f *os.File) (string, error) {
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return "", &os.PathError{Op: "statx", Path: f.Name(), Err: err}
	}
	if st.Mask&unix.STATX_BTIME == 0 {
		st.Btime = unix.StatxTimestamp{}
	}
	return fmt.Sprintf("%d/%d.%09d", st.Ino, st.Btime.Sec, st.Btime.Nsec), nil
}
