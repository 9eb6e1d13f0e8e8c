// Package block opens disks and disk images and moves bytes in and out of them.
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
	// stale data. Offsets, lengths and buffers must then be multiples of the
	// logical sector. Image files are read through the page cache, which is
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
}

// Open opens path. Errors wrap ErrUnsupportedFile or that of the system call.
func Open(path string, o Options) (*Device, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	isDevice := info.Mode().Type() == os.ModeDevice
	if !isDevice && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("open: %s: %w", path, ErrUnsupportedFile)
	}
	f, err := os.OpenFile(path, openFlags(o, isDevice), 0)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	d := &Device{f: f, isDevice: isDevice}
	if d.size, err = d.CurrentSize(); err != nil {
		f.Close()
		return nil, err
	}
	return d, nil
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

// ReadAt reads len(p) bytes at off; see io.ReaderAt.
func (d *Device) ReadAt(p []byte, off int64) (int, error) { return d.f.ReadAt(p, off) }

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
	var b extent.Builder
	for at := e.Off; at < e.End(); {
		data, err := unix.Seek(int(d.f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return extent.Set{}, fmt.Errorf("find data in %s at %d: %w", d.f.Name(), at, err)
		}
		hole, err := unix.Seek(int(d.f.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return extent.Set{}, fmt.Errorf("find hole in %s at %d: %w", d.f.Name(), data, err)
		}
		b.Add(extent.Extent{Off: data, Len: hole - data}.Intersect(e))
		at = hole
	}
	return b.Set(), nil
}
