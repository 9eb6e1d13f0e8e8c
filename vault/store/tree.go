package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Files is a tree of files that objects can lie in. Names have slashes between, and are
// below the root of the tree, which is ".".
type Files interface {
	// Create makes a file that is not there, for writing.
	Create(name string) (File, error)
	// Open opens a file for reading.
	Open(name string) (ReadFile, error)
	// Rename gives a file a name that no file has; the error wraps fs.ErrExist where one has.
	Rename(from, to string) error
	// Remove removes a file. The error wraps fs.ErrNotExist.
	Remove(name string) error
	// Mkdir makes a folder. The error wraps fs.ErrExist where it is there.
	Mkdir(name string) error
	// ReadDir returns what is in a folder. The error wraps fs.ErrNotExist.
	ReadDir(name string) ([]fs.FileInfo, error)
	// SyncDir makes the names in a folder survive a power cut.
	SyncDir(name string) error
	// Close ends the use of the tree.
	Close() error
}

// File is a file that is being written.
type File interface {
	io.WriteCloser
	// Sync makes the content survive a power cut.
	Sync() error
}

// ReadFile is a file that is open for reading.
type ReadFile interface {
	io.ReaderAt
	io.Closer
}

// OnFiles returns a store whose objects are files of a tree.
func OnFiles(address string, f Files) Store {
	return &tree{address: address, files: f, safe: map[string]bool{}}
}

// tree keeps objects as files. An object comes into being below tmp/, is written and synced
// there, then takes its name in one step that replaces nothing, and then its folder is
// synced. A crash before the rename leaves garbage in tmp/; one behind it, before the folder
// is synced, the object or not.
type tree struct {
	address string
	files   Files
	mu      sync.Mutex
	safe    map[string]bool // folders that are there and survive a power cut
}

func (t *tree) String() string { return t.address }
func (t *tree) Close() error   { return t.files.Close() }

// noLock is why files cannot be locked: who may write a folder may remove what is in it.
func (t *tree) noLock() error {
	return fmt.Errorf("store: %s: %w: only a bucket of S3 can do that", t.address, ErrNoLock)
}

func (t *tree) Lockable(context.Context) error                    { return t.noLock() }
func (t *tree) LockFor(func(name string) time.Duration) error     { return t.noLock() }
func (t *tree) Locked(context.Context, string) (time.Time, error) { return time.Time{}, nil }
func (t *tree) Lock(context.Context, string, time.Time) (time.Time, error) {
	return time.Time{}, t.noLock()
}

func (t *tree) Put(ctx context.Context, name string, data []byte) error {
	if err := errors.Join(checkName(name), ctx.Err()); err != nil {
		return err
	}
	dir := path.Dir(name)
	err := t.mkdir(dir)
	if err == nil {
		err = t.place(name, data)
	}
	if errors.Is(err, ErrExists) {
		err = same(ctx, t, name, data, err)
	}
	if err == nil {
		err = t.files.SyncDir(dir)
	}
	if err != nil {
		return t.fault("write", name, err)
	}
	return nil
}

// place gives data its name; whether that survives a power cut is open yet.
func (t *tree) place(name string, data []byte) error {
	temp := path.Join(TempPrefix, rand.Text())
	if err := t.mkdir(path.Dir(temp)); err != nil {
		return err
	}
	f, err := t.files.Create(temp)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = t.files.Rename(temp, name)
	}
	if errors.Is(err, fs.ErrExist) {
		err = fmt.Errorf("%w: %w", ErrExists, err)
	}
	if err != nil {
		if left := t.files.Remove(temp); left != nil && !errors.Is(left, fs.ErrNotExist) {
			err = errors.Join(err, left)
		}
	}
	return err
}

// mkdir makes a folder and those that it lies in, so that they survive a power cut. One that is
// there may have been made by somebody who crashed before its name was safe.
func (t *tree) mkdir(dir string) error {
	t.mu.Lock()
	known := t.safe[dir]
	t.mu.Unlock()
	if known {
		return nil
	}
	parent := path.Dir(dir)
	if dir != "." {
		if err := t.mkdir(parent); err != nil {
			return err
		}
	}
	err := t.files.Mkdir(dir)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if dir == "." {
		parent = ".."
	}
	if dir != "." || err == nil { // what the root lies in may be closed to us
		if err := t.files.SyncDir(parent); err != nil {
			return err
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.safe[dir] = true
	return nil
}

func (t *tree) Get(ctx context.Context, name string, off, n int64, room []byte) ([]byte, error) {
	if err := errors.Join(checkName(name), ctx.Err()); err != nil {
		return nil, err
	}
	f, err := t.files.Open(name)
	if err != nil {
		return nil, t.fault("read", name, err)
	}
	b, err := readUpTo(f, off, roomFor(n, room))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, t.fault("read", name, err)
	}
	return b, nil
}

// roomFor returns n bytes, in room where that has the capacity.
func roomFor(n int64, room []byte) []byte {
	if int64(cap(room)) < n {
		return make([]byte, n)
	}
	return room[:n]
}

// readUpTo reads b full, or up to the end.
func readUpTo(f io.ReaderAt, off int64, b []byte) ([]byte, error) {
	got, err := f.ReadAt(b, off)
	if errors.Is(err, io.EOF) || got == len(b) {
		err = nil
	} else if err == nil {
		err = io.ErrNoProgress
	}
	return b[:got], err
}

func (t *tree) List(ctx context.Context, prefix string, each func(Info) error) error {
	dir := "."
	if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
		dir = prefix[:i]
		if err := checkName(dir); err != nil {
			return err
		}
	}
	return t.list(ctx, dir, prefix, each)
}

// list lists a folder and those below. What vanishes meanwhile is not there.
func (t *tree) list(ctx context.Context, dir, prefix string, each func(Info) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	infos, err := t.files.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return t.fault("list", dir, err)
	}
	for _, info := range infos {
		name := path.Join(dir, info.Name())
		switch {
		case info.IsDir() && (strings.HasPrefix(name+"/", prefix) || strings.HasPrefix(prefix, name+"/")):
			err = t.list(ctx, name, prefix, each)
		case info.Mode().IsRegular() && strings.HasPrefix(name, prefix):
			err = each(Info{Name: name, Size: info.Size(), Time: info.ModTime()})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) Remove(ctx context.Context, name string) error {
	if err := errors.Join(checkName(name), ctx.Err()); err != nil {
		return err
	}
	err := t.files.Remove(name)
	gone := errors.Is(err, fs.ErrNotExist)
	if err == nil || gone { // an earlier try may have ended here
		err = t.files.SyncDir(path.Dir(name))
	}
	if gone && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return t.fault("remove", name, err)
	}
	return nil
}

func (t *tree) fault(what, name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = fmt.Errorf("%w: %w", ErrNotExist, err)
	case what == "read" && errors.Is(err, syscall.EIO):
		err = fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	return fmt.Errorf("store: %s %s in %s: %w", what, name, t.address, err)
}
