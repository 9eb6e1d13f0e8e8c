package transaction

import (
	"errors"
	"fmt"
	"os"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"
)

// ErrNoRoom says that a journal would have left too little room on a filesystem that
// others need. The target is the old one.
var ErrNoRoom = errors.New("too little room is left on a filesystem of the source")

const (
	// One byte of sparePart on a filesystem is left to others, and no more than
	// mostSpare bytes.
	sparePart = 10
	mostSpare = 1 << 30
)

// sparing writes to a file of a Folder as long as the folder's filesystem has room.
type sparing struct {
	File
	folder Folder
}

func (s sparing) WriteAt(p []byte, off int64) (int, error) {
	if d, ok := s.folder.(*Dir); ok && d.LeaveRoom {
		if err := roomOn(d.dir); err != nil {
			return 0, err
		}
	}
	return s.File.WriteAt(p, off)
}

// roomOn looks at the filesystem that an open file lies on.
func roomOn(f *os.File) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return &os.PathError{Op: "statfs", Path: f.Name(), Err: err}
	}
	free, left := st.Bavail*uint64(st.Bsize), min(st.Blocks/sparePart*uint64(st.Bsize), mostSpare)
	if free < left {
		return fmt.Errorf("%w: %s are free around %s, and mirrors leave %s to others", ErrNoRoom, humanize.IBytes(free), f.Name(), humanize.IBytes(left))
	}
	return nil
}
