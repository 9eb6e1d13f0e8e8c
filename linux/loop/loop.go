// Package loop attaches loop devices to parts of files and of block devices.
//
// For most uses, call [Attach], mount the device, and close it: it detaches itself when its
// last user is gone, a mount as well as a process that was killed.
//
// The package owns the ioctls of drivers/block/loop.c. Each of its devices is read-only for
// the kernel too, unless the options say otherwise: a filesystem that is mounted from it cannot
// write, not even its journal.
// It refuses to take a device that another program has got hold of meanwhile, and takes the
// next. It holds no state; its functions may be called by several goroutines at once.
package loop

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"tidemark/linux/sysfs"
)

// ErrNotSupported says that there are no loop devices to be had here.
var ErrNotSupported = errors.New("no loop devices: load the module (modprobe loop), or give the container /dev/loop-control and /dev/loop*")

// major is the number of all loop devices (Documentation/admin-guide/devices.txt).
const major = 7

// Options say what a device is of. The zero value is all of the file.
type Options struct {
	Off, Len   int64  // bytes; a length of 0 reaches to the end
	SectorSize int    // bytes, 512 where it is 0
	Name       string // at most 63 bytes, by which NameOf knows it again
	// Write makes the device writable, and has it go past the page cache of its file where
	// that can be. The file must be open for writing.
	Write bool
}

// Device is an attached loop device.
type Device struct {
	Path string
	node *os.File
}

// Attach makes a loop device over the file or block device that is open for reading. The
// error wraps ErrNotSupported, or that of a system call.
func Attach(backing *os.File, o Options) (*Device, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w (%w)", ErrNotSupported, err)
	}
	if err != nil {
		return nil, fmt.Errorf("loop device: %w", err)
	}
	defer control.Close()
	config := unix.LoopConfig{Fd: uint32(backing.Fd()), Size: uint32(o.SectorSize)}
	config.Info = unix.LoopInfo64{Offset: uint64(o.Off), Sizelimit: uint64(o.Len), Flags: unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR}
	mode := os.O_RDONLY
	if o.Write {
		config.Info.Flags, mode = unix.LO_FLAGS_AUTOCLEAR|unix.LO_FLAGS_DIRECT_IO, os.O_RDWR
	}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], o.Name)
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("loop device: find a free one: %w", err)
		}
		d := &Device{Path: sysfs.DevPath(fmt.Sprintf("loop%d", n))}
		d.node, err = os.OpenFile(d.Path, mode, 0)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO) {
			return nil, fmt.Errorf("%w (%w)", ErrNotSupported, err)
		}
		if err != nil {
			return nil, fmt.Errorf("loop device: %w", err)
		}
		if err = unix.IoctlLoopConfigure(int(d.node.Fd()), &config); err == nil {
			return d, nil
		}
		d.node.Close()
		if !errors.Is(err, unix.EBUSY) { // else another program was faster
			return nil, fmt.Errorf("%s: attach %s: %w", d.Path, backing.Name(), err)
		}
	}
}

// Close lets go of the device, which is detached when nobody else uses it.
func (d *Device) Close() error { return d.node.Close() }

// Refresh has a loop device take the size of its file anew.
func Refresh(dev sysfs.Dev) error {
	path, err := sysfs.Node(dev)
	if err != nil {
		return err
	}
	node, err := os.Open(path)
	if err != nil {
		return err
	}
	defer node.Close()
	if err := unix.IoctlSetInt(int(node.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("%s: take the size of its file anew: %w", path, err)
	}
	return nil
}

// NameOf returns the name that a loop device was attached with, which losetup makes the
// path of its file; "" for a device of another kind, or one that is gone.
func NameOf(dev sysfs.Dev) (string, error) {
	if dev.Major != major {
		return "", nil
	}
	path, err := sysfs.Node(dev)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	node, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer node.Close()
	info, err := unix.IoctlLoopGetStatus64(int(node.Fd()))
	if errors.Is(err, unix.ENXIO) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	name, _, _ := bytes.Cut(info.File_name[:], []byte{0})
	return string(name), nil
}

// Detached lists the loop devices that are attached to nothing.
func Detached() (paths []string, err error) {
	all, err := filepath.Glob(sysfs.DiskDir("loop") + "[0-9]*")
	if err != nil {
		return nil, err
	}
	for _, dir := range all {
		if _, err := os.Stat(filepath.Join(dir, "loop")); errors.Is(err, fs.ErrNotExist) {
			paths = append(paths, sysfs.DevPath(filepath.Base(dir)))
		}
	}
	return paths, nil
}
