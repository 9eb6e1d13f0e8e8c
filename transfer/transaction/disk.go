package transaction

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/linux/atomicfile"
	"tidemark/linux/sysfs"
)

// Disk is a Target that is an image file or a block device.
type Disk struct{ *block.Device }

// Resize implements Target. A device that is too small is an error.
func (d Disk) Resize(size int64) error {
	if !d.IsDevice() {
		return d.Truncate(size)
	}
	if have := d.Size(); have < size {
		return fmt.Errorf("%s has %d bytes, the source %d", d.Path(), have, size)
	}
	return nil
}

// Reserve implements Target. A filesystem that cannot reserve says so only when it is
// written to.
func (d Disk) Reserve(e extent.Extent) error {
	if d.IsDevice() {
		return nil
	}
	err := unix.Fallocate(int(d.File().Fd()), unix.FALLOC_FL_KEEP_SIZE, e.Off, e.Len)
	if err == nil || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return &os.PathError{Op: "reserve " + e.String(), Path: d.Path(), Err: err}
}

// Uncached implements Uncached.
func (d Disk) Uncached() (UncachedWriter, error) { return d.Direct() }

// Clone implements Cloner, on filesystems that can do it (XFS, Btrfs and others).
func (d Disk) Clone(f File, at int64, e extent.Extent) bool {
	from, ok := f.(*osFile)
	if !ok || d.IsDevice() {
		return false
	}
	return unix.IoctlFileCloneRange(int(d.File().Fd()), &unix.FileCloneRange{
		Src_fd: int64(from.Fd()), Src_offset: uint64(at), Src_length: uint64(e.Len), Dest_offset: uint64(e.Off),
	}) == nil
}

// Stamp implements Target. It tells no more than the size of a device whose writes the
// kernel does not count.
func (d Disk) Stamp() (Stamp, error) {
	if d.IsDevice() {
		return d.deviceStamp()
	}
	var st unix.Statx_t
	flags, mask := unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS|unix.STATX_BTIME
	if err := unix.Statx(int(d.File().Fd()), "", flags, mask, &st); err != nil {
		return Stamp{}, &os.PathError{Op: "statx", Path: d.Path(), Err: err}
	}
	s := Stamp{Kind: Image, Size: int64(st.Size), MTime: nanoseconds(st.Mtime), CTime: nanoseconds(st.Ctime), Inode: st.Ino}
	if st.Mask&unix.STATX_BTIME != 0 {
		s.BTime = nanoseconds(st.Btime)
	}
	return s, nil
}

func nanoseconds(t unix.StatxTimestamp) int64 { return t.Sec*1e9 + int64(t.Nsec) }

func (d Disk) deviceStamp() (Stamp, error) {
	s := Stamp{Kind: Device, Size: d.Size()}
	c, err := d.Counters()
	if errors.Is(err, block.ErrNoCounters) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	s.DiskSeq, s.Written = d.Identity().DiskSeq, c.Written+c.Discarded
	s.BootID, err = sysfs.BootID()
	return s, err
}

// CreateImage makes an empty image at path, which must not exist. Its name survives a
// power cut once CreateImage has returned.
func CreateImage(path string, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(path))
}
