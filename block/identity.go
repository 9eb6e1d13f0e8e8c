package block

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"tidemark/linux/sysfs"
)

// ErrNotBlockDevice says that a path does not name a block device.
var ErrNotBlockDevice = errors.New("not a block device")

// sysfsSector is the unit of the sizes in sysfs, whatever the disk's own sector.
const sysfsSector = 512

// Identity tells a block device from every other, and from the one that had its
// name before.
type Identity struct {
	Path         string // as given
	Major, Minor uint32 // of the device itself
	Disk         string // kernel name of the whole disk, "loop0"
	DiskMajor    uint32
	DiskMinor    uint32
	DiskSeq      uint64 // grows whenever a disk or its medium is replaced; 0 before Linux 5.15
	// Folder is, before Linux 5.15, another number whenever a disk is replaced, or the file of a
	// loop device; not when its medium is. 0 from then on.
	Folder      uint64
	DiskSize    int64 // bytes
	Start, Size int64 // bytes: the slice of the disk that the device is; Start is 0 for a whole disk
	BioBased    bool  // no request queue (dm, md, zram): completions are seen per bio
	Zoned       bool
}

// Dev returns the number of the device itself.
func (id Identity) Dev() sysfs.Dev { return sysfs.Dev{Major: id.Major, Minor: id.Minor} }

// IsPartition reports whether the device is a slice of its disk.
func (id Identity) IsPartition() bool {
	return id.Major != id.DiskMajor || id.Minor != id.DiskMinor
}

// Overlaps reports whether two devices share bytes of one disk.
func (id Identity) Overlaps(other Identity) bool {
	return id.DiskMajor == other.DiskMajor && id.DiskMinor == other.DiskMinor &&
		id.Start < other.Start+other.Size && other.Start < id.Start+id.Size
}

// Identify reads the identity of the block device that path leads to now. The error
// wraps ErrNotBlockDevice when path is something else. What is open already is told by
// Device.Identity.
func Identify(path string) (Identity, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return Identity{}, fmt.Errorf("identify: %w", &fs.PathError{Op: "stat", Path: path, Err: err})
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return Identity{}, fmt.Errorf("identify: %s: %w", path, ErrNotBlockDevice)
	}
	return identify(path, sysfs.DevOf(st.Rdev))
}

// IdentifyDev reads the identity of the block device with that number. Path is where
// the kernel has its node, or empty where /dev has none.
func IdentifyDev(d sysfs.Dev) (Identity, error) {
	path, err := sysfs.Node(d)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Identity{}, fmt.Errorf("identify: %w", err)
	}
	return identify(path, d)
}

func identify(path string, d sysfs.Dev) (Identity, error) {
	id := Identity{Path: path, Major: d.Major, Minor: d.Minor}
	dir, err := sysfs.Real(d.Dir())
	if err == nil {
		err = id.readSysfs(dir)
	}
	if err != nil {
		return Identity{}, fmt.Errorf("identify: device %s %s: %w", d, path, err)
	}
	return id, nil
}

func (id *Identity) readSysfs(dir string) error {
	disk := dir
	if exists(filepath.Join(dir, "partition")) {
		disk = filepath.Dir(dir)
		start, err := sysfs.Uint(filepath.Join(dir, "start"))
		if err != nil {
			return err
		}
		id.Start = int64(start) * sysfsSector
	}
	id.Disk = filepath.Base(disk)
	size, err := sysfs.Uint(filepath.Join(dir, "size"))
	if err != nil {
		return err
	}
	diskSize, err := sysfs.Uint(filepath.Join(disk, "size"))
	if err != nil {
		return err
	}
	id.Size, id.DiskSize = int64(size)*sysfsSector, int64(diskSize)*sysfsSector
	id.DiskSeq, err = sysfs.Uint(filepath.Join(disk, "diskseq"))
	if errors.Is(err, fs.ErrNotExist) {
		id.Folder, err = folder(disk)
	}
	if err != nil {
		return err
	}
	zoned, err := sysfs.Text(filepath.Join(disk, "queue", "zoned"))
	id.Zoned = err == nil && zoned != "none"
	id.BioBased = !exists(filepath.Join(disk, "mq"))
	text, err := sysfs.Text(filepath.Join(disk, "dev"))
	if err != nil {
		return err
	}
	d, err := sysfs.ParseDev(text)
	id.DiskMajor, id.DiskMinor = d.Major, d.Minor
	return err
}

// folder returns the inode of the folder in sysfs that comes and goes with a disk, or with the
// file of a loop device. No number is used twice: it is 64 bits wide, and counts
// (kernfs_new_node in fs/kernfs/dir.c).
func folder(disk string) (uint64, error) {
	var st unix.Stat_t
	err := unix.Stat(filepath.Join(disk, "loop"), &st)
	if errors.Is(err, fs.ErrNotExist) {
		err = unix.Stat(disk, &st)
	}
	if err != nil {
		return 0, &fs.PathError{Op: "stat", Path: disk, Err: err}
	}
	return st.Ino, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
