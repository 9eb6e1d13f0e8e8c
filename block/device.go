// Package block opens disks and disk images and moves bytes in and out of them.
//
// For most uses, call [Open] with Options.Direct for a source that is in use, and read
// into an [AlignedBuffer].
//
// It owns the details that every user of a raw device needs: direct I/O with
// aligned buffers, the size of a device as against that of a file, writing zeros
// without writing, and the identity of a device that tells it from another one
// that has taken its name. It refuses anything that is neither a regular file
// nor a block device. A Device may be used by several goroutines at once.
package block

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"tidemark/extent"
	"tidemark/linux/sysfs"
)

// ErrUnsupportedFile says that a path is neither a block device nor a regular
// file.
var ErrUnsupportedFile = errors.New("not a block device or regular file")

// Options say how to open a Device. The zero value reads.
type Options struct {
	// Write opens for reading and writing. A source is never opened so.
	Write bool
	// Direct bypasses the page cache where the path is a block device: a
	// buffered read of a device that carries a mounted filesystem may return
	// stale data. Buffers must then be aligned (AlignedBuffer), and writes be made of
	// whole logical sectors. Image files are read through the page cache, which is
	// coherent for them.
	Direct bool
	// Exclusive claims a block device as a mount does: opening fails with
	// EBUSY while it is mounted, part of another device, or claimed by another
	// program.
	Exclusive bool
}

// Device is an open block device or image file.
type Device struct {
	f        *os.File
	size     int64
	isDevice bool
	id       Identity // of a block device
	sector   int      // bytes
	direct   bool
}

// Open opens path. Errors wrap ErrUnsupportedFile or that of the system call. What the
// Device tells of itself is asked of what was opened, and not of the path, which may lead
// elsewhere by now.
func Open(path string, o Options) (*Device, error) {
	f, st, err := openFile(path, o)
	if err != nil {
		return nil, err
	}
	d := &Device{f: f, isDevice: st.Mode&unix.S_IFMT == unix.S_IFBLK, sector: sysfsSector}
	if d.isDevice {
		d.direct = o.Direct
		if d.id, err = identify(path, sysfs.DevOf(st.Rdev)); err == nil {
			d.sector, err = unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET)
		}
	}
	if err == nil {
		d.size, err = d.CurrentSize()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", path, err), f.Close())
	}
	return d, nil
}

// openFile opens path for I/O once it is known to lead to a disk or an image: opening
// another kind of file may have effects.
func openFile(path string, o Options) (*os.File, unix.Stat_t, error) {
	var was, is unix.Stat_t
	if err := unix.Stat(path, &was); err != nil {
		return nil, is, &os.PathError{Op: "open", Path: path, Err: err}
	}
	kind := was.Mode & unix.S_IFMT
	if kind != unix.S_IFBLK && kind != unix.S_IFREG {
		return nil, is, fmt.Errorf("open %s: %w", path, ErrUnsupportedFile)
	}
	f, err := os.OpenFile(path, openFlags(o, kind == unix.S_IFBLK), 0)
	if err != nil {
		return nil, is, err
	}
	if err := unix.Fstat(int(f.Fd()), &is); err != nil {
		return nil, is, errors.Join(&os.PathError{Op: "stat", Path: path, Err: err}, f.Close())
	}
	if is.Mode&unix.S_IFMT != kind {
		return nil, is, errors.Join(fmt.Errorf("open %s: %w: it was replaced just now", path, ErrUnsupportedFile), f.Close())
	}
	return f, is, nil
}

func openFlags(o Options, isDevice bool) int {
	flags := os.O_RDONLY
	if o.Write {
		flags = os.O_RDWR
	}
	if isDevice && o.Direct {
		flags |= unix.O_DIRECT
	}
	if isDevice && o.Exclusive {
		flags |= unix.O_EXCL
	}
	return flags | unix.O_NONBLOCK
}

// Path returns the path the device was opened by.
func (d *Device) Path() string { return d.f.Name() }

// File returns the open file, which stays the Device's.
func (d *Device) File() *os.File { return d.f }

// IsDevice reports whether this is a block device rather than an image file.
func (d *Device) IsDevice() bool { return d.isDevice }

// IsMapped reports whether this is a device of device-mapper.
func (d *Device) IsMapped() bool {
	return d.isDevice && !d.id.IsPartition() && sysfs.IsMapped(d.id.Disk)
}

// Identity tells the block device that is open from every other; zero for an image file.
func (d *Device) Identity() Identity { return d.id }

// SectorSize returns the logical sector of a block device in bytes, a power of two from
// 512 on: what direct I/O wants offsets and lengths to be a multiple of. An image file
// has 512.
func (d *Device) SectorSize() int { return d.sector }

// Size returns the size in bytes when the device was opened.
func (d *Device) Size() int64 { return d.size }

// CurrentSize asks the kernel for the size in bytes as it is now.
func (d *Device) CurrentSize() (int64, error) {
	if !d.isDevice {
		info, err := d.f.Stat()
		if err != nil {
			return 0, fmt.Errorf("size: %w", err)
		}
		return info.Size(), nil
	}
	size, err := d.f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, fmt.Errorf("size: %w", err)
	}
	return size, nil
}

// ReadAt reads len(p) bytes at off; see io.ReaderAt. A direct read that is not made of
// whole sectors is widened, and copied from a buffer of its own.
func (d *Device) ReadAt(p []byte, off int64) (int, error) {
	sector := int64(d.sector)
	end := off + int64(len(p))
	if !d.direct || (off|end)%sector == 0 {
		return d.f.ReadAt(p, off)
	}
	from := off / sector * sector
	buf := AlignedBuffer(int((end+sector-1)/sector*sector - from))
	n, err := d.f.ReadAt(buf, from)
	n = copy(p, buf[min(off-from, int64(n)):n])
	if n == len(p) {
		err = nil
	}
	return n, err
}

// WriteAt writes p at off; see io.WriterAt.
func (d *Device) WriteAt(p []byte, off int64) (int, error) { return d.f.WriteAt(p, off) }

// Truncate sets the size of an image file in bytes.
func (d *Device) Truncate(size int64) error {
	if err := d.f.Truncate(size); err != nil {
		return err
	}
	d.size = size
	return nil
}

// Sync makes everything written so far survive a power cut.
func (d *Device) Sync() error { return d.f.Sync() }

// Close closes the device.
func (d *Device) Close() error { return d.f.Close() }

// Zero makes e read as zeros, giving the space back where the filesystem or the
// device can (a hole, a discard that is sure to read as zeros) and writing zeros
// where it cannot.
func (d *Device) Zero(e extent.Extent) error {
	modes := []uint32{unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE}
	if d.isDevice {
		modes = append(modes, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE)
	}
	for _, mode := range modes {
		err := unix.Fallocate(int(d.f.Fd()), mode, e.Off, e.Len)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) {
			return &os.PathError{Op: "zero " + e.String(), Path: d.f.Name(), Err: err}
		}
	}
	return d.writeZeros(e)
}

func (d *Device) writeZeros(e extent.Extent) error {
	buf := AlignedBuffer(int(min(e.Len, 1<<20)))
	for e.Len > 0 {
		n := min(e.Len, int64(len(buf)))
		if _, err := d.f.WriteAt(buf[:n], e.Off); err != nil {
			return err
		}
		e = extent.Extent{Off: e.Off + n, Len: e.Len - n}
	}
	return nil
}

// Data returns the parts of e that may hold anything but zeros: for an image
// file what lies outside its holes (lseek SEEK_DATA), for a block device, which
// cannot tell, all of e.
func (d *Device) Data(e extent.Extent) (extent.Set, error) {
	if d.isDevice {
		return extent.NewSet(e), nil
	}
	return Data(d.f, e)
}

// Data returns the parts of e that lie outside the holes of a regular file.
func Data(f *os.File, e extent.Extent) (extent.Set, error) {
	var b extent.Builder
	for at := e.Off; at < e.End(); {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return extent.Set{}, fmt.Errorf("find data in %s at %d: %w", f.Name(), at, err)
		}
		hole, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return extent.Set{}, fmt.Errorf("find hole in %s at %d: %w", f.Name(), data, err)
		}
		b.Add(extent.Extent{Off: data, Len: hole - data}.Intersect(e))
		at = hole
	}
	return b.Set(), nil
}
