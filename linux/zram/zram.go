// Package zram makes disks that lie in memory, compressed.
//
// For most uses, call [Add], then [Device.SetSize], and [Device.Remove] when nobody uses it any more.
// A device that a process made which was killed is found again by what Add returned.
//
// The package owns the files of zram in sysfs (Documentation/admin-guide/blockdev/zram.rst, Linux 5.15
// to 6.12). It removes no device but the one that Add made, and none that is in use. It holds no state;
// its functions may be called by several goroutines at once.
package zram

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"tidemark/linux/sysfs"
)

// ErrNotSupported says that the kernel has no zram, or that its module is not loaded.
var ErrNotSupported = errors.New("the kernel has no zram: load the module (modprobe zram)")

// SectorSize is that of the devices, in bytes.
const SectorSize = 4096

const control = "/sys/class/zram-control"

// Device is a zram device. It is known by its number and by DiskSeq, which no other device of this
// boot has.
type Device struct {
	Number  int
	DiskSeq uint64
}

// Path returns where the device's node is.
func (d Device) Path() string { return sysfs.DevPath(d.name()) }

func (d Device) name() string { return fmt.Sprintf("zram%d", d.Number) }

func (d Device) file(name string) string { return filepath.Join(sysfs.DiskDir(d.name()), name) }

// Add makes a device without a size. The error wraps ErrNotSupported.
func Add() (Device, error) {
	text, err := os.ReadFile(filepath.Join(control, "hot_add"))
	if errors.Is(err, fs.ErrNotExist) {
		return Device{}, ErrNotSupported
	}
	if err != nil {
		return Device{}, fmt.Errorf("zram: %w", err)
	}
	var d Device
	if d.Number, err = strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
		d.DiskSeq, err = sysfs.Uint(d.file("diskseq"))
	}
	if err != nil {
		return Device{}, fmt.Errorf("zram: %w", err)
	}
	return d, nil
}

// Supported returns nil when Add could make a device, else an error that wraps ErrNotSupported.
func Supported() error {
	if _, err := os.Stat(control); err != nil {
		return ErrNotSupported
	}
	return nil
}

// SetSize gives the device its size in bytes. It takes memory only as it is written to.
func (d Device) SetSize(size int64) error {
	if err := os.WriteFile(d.file("disksize"), []byte(strconv.FormatInt(size, 10)), 0); err != nil {
		return fmt.Errorf("zram: %w", err)
	}
	return nil
}

// Remove gives the device, and its memory, back. That it is gone already is no error. The error wraps
// unix.EBUSY when somebody uses it.
func (d Device) Remove() error {
	seq, err := sysfs.Uint(d.file("diskseq"))
	if errors.Is(err, fs.ErrNotExist) || err == nil && seq != d.DiskSeq {
		return nil
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(control, "hot_remove"), []byte(strconv.Itoa(d.Number)), 0)
	}
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("zram: remove %s: %w", d.Path(), err)
	}
	return nil
}
