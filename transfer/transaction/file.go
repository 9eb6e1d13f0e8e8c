package transaction

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/extent"
)

// osFile is a file of a Dir. It may be open twice: then it is written to past the page
// cache until a write comes that is not aligned, and from that on through it, so that the
// two are never under way together. Reads go either way.
type osFile struct {
	*os.File
	direct *os.File // nil: no direct I/O, or no more
	also   *os.File // direct, to be closed
}

// newFile opens f a second time, by descriptor, which cannot be another file by now.
func newFile(f *os.File) *osFile {
	t := &osFile{File: f}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err == nil {
		t.direct = os.NewFile(uintptr(fd), f.Name())
		t.also = t.direct
	}
	return t
}

func (f *osFile) fits(p []byte, off int64) bool {
	return f.direct != nil && len(p) > 0 && len(p)%pageSize == 0 && off%pageSize == 0
}

// ReadAt implements io.ReaderAt.
func (f *osFile) ReadAt(p []byte, off int64) (int, error) {
	if f.fits(p, off) {
		if n, err := f.direct.ReadAt(p, off); !errors.Is(err, unix.EINVAL) {
			return n, err
		}
	}
	return f.File.ReadAt(p, off)
}

// WriteAt implements io.WriterAt; of a file that is open twice for one goroutine at a
// time. A filesystem for which p is not aligned enough answers EINVAL.
func (f *osFile) WriteAt(p []byte, off int64) (int, error) {
	if f.fits(p, off) {
		if n, err := f.direct.WriteAt(p, off); !errors.Is(err, unix.EINVAL) {
			return n, err
		}
	}
	if f.direct != nil {
		f.direct = nil
	}
	return f.File.WriteAt(p, off)
}

// Size implements File.
func (f *osFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// Data implements sums.Sparse; see block.Data.
func (f *osFile) Data(e extent.Extent) (extent.Set, error) { return block.Data(f.File, e) }

// Reread implements Rereader; see block.Reread.
func (f *osFile) Reread() error { return block.Reread(f.File) }

// Close closes both.
func (f *osFile) Close() error {
	err := f.File.Close()
	if f.also != nil {
		err = errors.Join(err, f.also.Close())
	}
	return err
}

// NewEnd is of a file that takes the place of another.
const NewEnd = ".new"

// Replace makes b the content of a file of a folder, durably and in one step: a power cut
// leaves the old content or the new.
func Replace(folder Folder, name string, b []byte) error {
	f, err := folder.Open(name+NewEnd, true)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(b, 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := folder.Rename(name+NewEnd, name); err != nil {
		return err
	}
	return folder.Sync()
}
