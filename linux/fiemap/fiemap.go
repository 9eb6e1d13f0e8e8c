// Package fiemap tells where the bytes of a file lie on the device of its filesystem, and keeps them
// there, and which bytes of a filesystem belong to nobody.
//
// For most uses, call [Of] with an open file, and [SetImmutable] before relying on the answer.
//
// The package owns the calls FS_IOC_FIEMAP (include/uapi/linux/fiemap.h), FS_IOC_GETFSMAP and FS_IOC_SETFLAGS. It
// refuses files whose extents are not simply theirs: shared, compressed, encrypted, inline, or not
// placed yet. A filesystem may move extents of a file at any time; ext4 and XFS do not while a
// file is immutable, which the caller has to see to. The functions hold no state.
package fiemap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrUnfit says that a file does not lie on its device in a way that could be used.
var ErrUnfit = errors.New("its extents cannot be relied on")

// Extent is a run of bytes of a file, and where it lies on the filesystem's device. All are bytes.
type Extent struct{ Logical, Physical, Len int64 }

const (
	fsIocFiemap = 0xc020660b // _IOWR('f', 11, struct fiemap)
	flagSync    = 0x1        // FIEMAP_FLAG_SYNC
	lastExtent  = 0x1        // FIEMAP_EXTENT_LAST
	unwritten   = 0x800      // FIEMAP_EXTENT_UNWRITTEN: allocated, and reads as zeros through the file
	merged      = 0x1000     // FIEMAP_EXTENT_MERGED
	immutable   = 0x10       // FS_IMMUTABLE_FL
	fsGetXattr  = 0x801c581f // FS_IOC_FSGETXATTR
	realtime    = 0x1        // FS_XFLAG_REALTIME: it lies on another device of an XFS
	headSize    = 32         // struct fiemap
	extentSize  = 56         // struct fiemap_extent
	batch       = 256        // extents that one call asks for
)

// Of returns the extents of a file in ascending order, holes left out. The error wraps ErrUnfit.
func Of(f *os.File) ([]Extent, error) {
	var xattr [28]byte // struct fsxattr
	if errno := ioctl(f, fsGetXattr, xattr[:]); errno == 0 && binary.LittleEndian.Uint32(xattr[:])&realtime != 0 {
		return nil, fmt.Errorf("fiemap: %s: it is a realtime file: %w", f.Name(), ErrUnfit)
	}
	var found []Extent
	buf := make([]byte, headSize+batch*extentSize)
	le := binary.LittleEndian
	for at := uint64(0); ; {
		clear(buf)
		le.PutUint64(buf[0:], at)
		le.PutUint64(buf[8:], ^uint64(0)-at)
		le.PutUint32(buf[16:], flagSync)
		le.PutUint32(buf[24:], batch)
		if errno := ioctl(f, fsIocFiemap, buf); errno != 0 {
			return nil, fmt.Errorf("fiemap: %s: %w", f.Name(), errno)
		}
		n := min(int(le.Uint32(buf[20:])), batch)
		if n == 0 {
			return found, nil
		}
		for i := range n {
			e := buf[headSize+i*extentSize:]
			x := Extent{int64(le.Uint64(e)), int64(le.Uint64(e[8:])), int64(le.Uint64(e[16:]))}
			flags := le.Uint32(e[40:])
			if flags&^(lastExtent|unwritten|merged) != 0 || x.Logical < 0 || x.Physical < 0 || x.Len <= 0 {
				return nil, fmt.Errorf("fiemap: %s: the extent at byte %d has flags %#x: %w", f.Name(), x.Logical, flags, ErrUnfit)
			}
			found = append(found, x)
			if flags&lastExtent != 0 {
				return found, nil
			}
			at = uint64(x.Logical + x.Len)
		}
	}
}

// SetImmutable has the filesystem refuse all changes of a file, and its removal, or accept them
// again (chattr +i, -i). Descriptors that are open for writing go on to be.
func SetImmutable(f *os.File, on bool) error {
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil {
		flags &^= immutable
		if on {
			flags |= immutable
		}
		err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags)
	}
	if err != nil {
		return fmt.Errorf("chattr: %s: %w", f.Name(), err)
	}
	return nil
}

// Immutable reports whether the filesystem refuses all changes of a file.
func Immutable(f *os.File) (bool, error) {
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return false, fmt.Errorf("lsattr: %s: %w", f.Name(), err)
	}
	return flags&immutable != 0, nil
}
