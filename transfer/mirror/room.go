package mirror

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"tidemark/extent"
)

// ErrNoRoom says that an update would have left too little room on a filesystem that
// others need. The mirror is the old one.
var ErrNoRoom = errors.New("too little room is left on a filesystem of the source")

const (
	// A filesystem's spareth part is left to others, and no more than mostSpare bytes.
	spare     = 10
	mostSpare = 1 << 30
	// reserveStep bounds what is reserved between two looks at the room, in bytes.
	reserveStep = 16 << 20
)

// roomy is a Folder or Target on a filesystem that others need. Room returns an error
// that wraps ErrNoRoom when nothing more is to be written there.
type roomy interface{ Room() error }

// room asks those of its arguments that are roomy.
func room(places ...any) error {
	for _, p := range places {
		if r, ok := p.(roomy); ok {
			if err := r.Room(); err != nil {
				return err
			}
		}
	}
	return nil
}

// roomOn looks at the filesystem that an open file lies on.
func roomOn(f *os.File) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return &os.PathError{Op: "statfs", Path: f.Name(), Err: err}
	}
	free, left := st.Bavail*uint64(st.Bsize), min(st.Blocks/spare*uint64(st.Bsize), mostSpare)
	if free < left {
		return fmt.Errorf("%w: %d bytes are free around %s, and %d of them are not for mirrors", ErrNoRoom, free, f.Name(), left)
	}
	return nil
}

// reserve makes room in a target for an extent, as far as it may be taken.
func reserve(target Target, e extent.Extent) error {
	for !e.Empty() {
		if err := room(target); err != nil {
			return err
		}
		step := extent.Extent{Off: e.Off, Len: min(e.Len, reserveStep)}
		if err := target.Reserve(step); err != nil {
			return err
		}
		e.Off, e.Len = step.End(), e.Len-step.Len
	}
	return nil
}
