// Package atomicfile replaces files whole: a reader, and a crash, see the old file or
// the new one.
//
// For most uses, call [WriteJSON] with Options.Durable and read the file back with
// [ReadJSON].
//
// A file that must outlive a power cut is written with Durable; one whose content is
// worthless after a reboot need not be synced. What a writer that was killed has left
// beside the file, the next writer to the folder removes, and [Sweep] does. The package
// refuses files that are too large for what it is for (MaxJSON). Functions may be called
// by several goroutines at once; the last of several writers wins.
package atomicfile

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrDamaged says that a file does not hold what it should.
var ErrDamaged = errors.New("damaged file")

// MaxJSON bounds the files that ReadJSON reads, in bytes.
const MaxJSON = 1 << 20

// Options say how a file is replaced. The zero value makes a file for its owner alone
// that a power cut may lose.
type Options struct {
	Mode    fs.FileMode // of the new file, before the umask; 0 stands for 0600
	Durable bool        // the new file survives a power cut once the call has returned
}

// prefix begins the names of files that are being written.
const prefix = ".tmp-tidemark-"

// Write replaces the file at path by what fill writes. The file comes into being beside
// path and takes its name in one step; after an error the old one is there. A path that
// is a symbolic link is replaced itself.
func Write(path string, o Options, fill func(*os.File) error) error {
	if o.Mode == 0 {
		o.Mode = 0o600
	}
	_ = Sweep(filepath.Dir(path)) // what it cannot remove is in nobody's way
	f, lock, err := create(filepath.Dir(path), o.Mode)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer unix.Close(lock)
	err = fill(f)
	if err == nil && o.Durable {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
	}
	if !o.Durable {
		return nil
	}
	return SyncDir(filepath.Dir(path))
}

// create makes a file that is locked until lock is closed: f is closed before, since some
// filesystems tell only then that what was written is lost. One that Sweep has found before it was
// locked is gone, and another one is made.
func create(dir string, mode fs.FileMode) (f *os.File, lock int, err error) {
	for {
		f, err = os.OpenFile(filepath.Join(dir, prefix+rand.Text()), os.O_RDWR|os.O_CREATE|os.O_EXCL, mode)
		if err != nil {
			return nil, -1, err
		}
		_ = unix.Flock(int(f.Fd()), unix.LOCK_EX) // where there are no locks, Sweep gets none either
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err == nil && st.Nlink == 0 {
			f.Close()
			continue
		}
		if lock, err = unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return nil, -1, errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
		return f, lock, nil
	}
}

// Sweep removes from a folder what writers that were killed have left. Files of writers that
// live stay.
func Sweep(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) && e.Type().IsRegular() {
			err = errors.Join(err, sweep(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

// sweep removes a file that nobody is writing.
func sweep(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it has its name by now
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return nil
	} else if err != nil {
		return fmt.Errorf("lock %s: %w", path, err)
	}
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// WriteJSON replaces the file at path by v, indented for people.
func WriteJSON(path string, o Options, v any) error {
	return Write(path, o, func(f *os.File) error {
		enc := json.NewEncoder(f)
		enc.SetIndent("", "\t")
		return enc.Encode(v)
	})
}

// ReadJSON reads a file into v. Fields that v does not have are refused. The error wraps
// fs.ErrNotExist or ErrDamaged.
func ReadJSON(path string, v any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, MaxJSON+1))
	if err != nil {
		return err
	}
	if len(raw) > MaxJSON {
		return fmt.Errorf("%s: %w: more than %d bytes", path, ErrDamaged, MaxJSON)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("%s: %w: %w", path, ErrDamaged, err)
	}
	return nil
}

// MkdirAll makes a folder and those it lies in. The names of all folders that it made
// survive a power cut once it has returned.
func MkdirAll(path string, mode fs.FileMode) error {
	if _, err := os.Stat(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(path)
	if err := MkdirAll(parent, mode); err != nil {
		return err
	}
	if err := os.Mkdir(path, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return SyncDir(parent)
}

// SyncDir makes the names in a folder survive a power cut.
func SyncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
