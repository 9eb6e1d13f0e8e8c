// Package sysfs reads what the kernel shows of block devices in /sys, and the id of this
// boot.
//
// For most uses, take the [Dev] of a device and read a file below its Dir with [Text] or
// [Uint].
//
// The package holds no state, and its functions may be called by several goroutines at
// once. Errors of files that are missing wrap fs.ErrNotExist: the device is gone, or the
// kernel is too old to show them.
package sysfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Dev is the number of a block device, or of a filesystem that lies on none.
type Dev struct{ Major, Minor uint32 }

// DevOf takes a number apart as stat and statx encode it (st_rdev, st_dev).
func DevOf(n uint64) Dev { return Dev{Major: unix.Major(n), Minor: unix.Minor(n)} }

// ParseDev reads a number as sysfs writes it, "8:1"; white space around it is ignored.
func ParseDev(s string) (Dev, error) {
	major, minor, ok := strings.Cut(strings.TrimSpace(s), ":")
	a, errA := strconv.ParseUint(major, 10, 32)
	b, errB := strconv.ParseUint(minor, 10, 32)
	if !ok || errA != nil || errB != nil {
		return Dev{}, fmt.Errorf("sysfs: %q is no device number", s)
	}
	return Dev{uint32(a), uint32(b)}, nil
}

// String returns the number as sysfs writes it, "8:1".
func (d Dev) String() string { return fmt.Sprintf("%d:%d", d.Major, d.Minor) }

// Dir returns the folder of the device, whatever it is called.
func (d Dev) Dir() string { return "/sys/dev/block/" + d.String() }

// DiskDir returns the folder of a whole disk by its kernel name, "sda", in which sysfs
// and the package write "!" for "/".
func DiskDir(disk string) string { return filepath.Join("/sys/block", disk) }

// DevPath returns where devtmpfs has the node of the device with that kernel name.
func DevPath(name string) string { return "/dev/" + strings.ReplaceAll(name, "!", "/") }

// Real returns the folder of a device that path is a link to, or is. What path lies in is no link:
// this asks the kernel once, where filepath.EvalSymlinks asks for each name of it.
func Real(path string) (string, error) {
	to, err := os.Readlink(path)
	switch {
	case errors.Is(err, syscall.EINVAL):
		return path, nil
	case err != nil:
		return "", err
	case filepath.IsAbs(to):
		return to, nil
	}
	return filepath.Join(filepath.Dir(path), to), nil
}

// Text returns the content of a file without the white space around it.
func Text(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("sysfs: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// Uint returns the number in a file.
func Uint(path string) (uint64, error) {
	text, err := Text(path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("sysfs: %s: %w", path, err)
	}
	return n, nil
}

// Stats are the fields of the file "stat" of a block device
// (Documentation/block/stat.rst), counted from 0. Fields that an older kernel does not
// have are 0.
type Stats [17]uint64

// What this project reads of them; a sector has 512 bytes here.
func (s Stats) Reads() uint64            { return s[0] }
func (s Stats) SectorsRead() uint64      { return s[2] }
func (s Stats) Writes() uint64           { return s[4] }
func (s Stats) SectorsWritten() uint64   { return s[6] }
func (s Stats) Discards() uint64         { return s[11] } // since Linux 4.18
func (s Stats) SectorsDiscarded() uint64 { return s[13] }

// leastStats is how many fields every kernel has.
const leastStats = 11

// Stat returns the statistics of the device with that folder. They stand still where
// queue/iostats is 0, and grow before the program hears that its request is done.
func Stat(dir string) (Stats, error) {
	path := filepath.Join(dir, "stat")
	text, err := Text(path)
	if err != nil {
		return Stats{}, err
	}
	s, err := parseStats(text)
	if err != nil {
		return Stats{}, fmt.Errorf("sysfs: %s: %w", path, err)
	}
	return s, nil
}

func parseStats(text string) (Stats, error) {
	fields := strings.Fields(text)
	if len(fields) < leastStats {
		return Stats{}, fmt.Errorf("%d fields, want %d or more", len(fields), leastStats)
	}
	var s Stats
	for i, f := range fields[:min(len(fields), len(s))] {
		n, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			return Stats{}, fmt.Errorf("field %d: %w", i+1, err)
		}
		s[i] = n
	}
	return s, nil
}

// WritesInFlight returns how many writes the device with that folder works on
// (Documentation/ABI/stable/sysfs-block, inflight: reads, then writes).
func WritesInFlight(dir string) (uint64, error) {
	path := filepath.Join(dir, "inflight")
	text, err := Text(path)
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(text)
	if len(fields) != 2 {
		return 0, fmt.Errorf("sysfs: %s: %q: want two numbers", path, text)
	}
	n, err := strconv.ParseUint(fields[1], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("sysfs: %s: %w", path, err)
	}
	return n, nil
}

// IsMapped reports whether a whole disk is one of device-mapper's.
func IsMapped(disk string) bool {
	_, err := os.Stat(filepath.Join(DiskDir(disk), "dm"))
	return err == nil
}

// Node returns a path of the node of a block device: /dev/mapper/NAME where there is
// one, or what the kernel calls it. The node is proved to be that of the device. The
// error wraps fs.ErrNotExist when the device is gone or has no node.
func Node(d Dev) (string, error) {
	if name, err := Text(filepath.Join(d.Dir(), "dm/name")); err == nil {
		if path := filepath.Join("/dev/mapper", name); isNode(path, d) {
			return path, nil
		}
	}
	uevent, err := Text(filepath.Join(d.Dir(), "uevent"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("device %s is gone: %w", d, err)
	}
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(uevent) {
		name, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME=")
		if !ok {
			continue
		}
		path := filepath.Join("/dev", name)
		if !isNode(path, d) {
			return "", fmt.Errorf("device %s: %s is not its node (is devtmpfs mounted on /dev?): %w", d, path, fs.ErrNotExist)
		}
		return path, nil
	}
	return "", fmt.Errorf("device %s has no name in sysfs: %w", d, fs.ErrNotExist)
}

func isNode(path string, d Dev) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && DevOf(st.Rdev) == d
}

// BootID identifies this boot of the machine.
func BootID() (string, error) { return Text("/proc/sys/kernel/random/boot_id") }
