package block

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
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
	DiskSize     int64  // bytes
	Start, Size  int64  // bytes: the slice of the disk that the device is; Start is 0 for a whole disk
	BioBased     bool   // no request queue (dm, md, zram): completions are seen per bio
	Zoned        bool
}

// IsPartition reports whether the device is a slice of its disk.
func (id Identity) IsPartition() bool {
	return id.Major != id.DiskMajor || id.Minor != id.DiskMinor
}

// Identify reads the identity of the block device at path from sysfs. The error
// wraps ErrNotBlockDevice when path is something else.
func Identify(path string) (Identity, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return Identity{}, fmt.Errorf("identify: %w", &fs.PathError{Op: "stat", Path: path, Err: err})
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return Identity{}, fmt.Errorf("identify: %s: %w", path, ErrNotBlockDevice)
	}
	id := Identity{Path: path, Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev)}
	dir, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", id.Major, id.Minor))
	if err != nil {
		return Identity{}, fmt.Errorf("identify: %s: %w", path, err)
	}
	if err := id.readSysfs(dir); err != nil {
		return Identity{}, fmt.Errorf("identify: %s: %w", path, err)
	}
	return id, nil
}

func (id *Identity) readSysfs(dir string) error {
	disk := dir
	if exists(filepath.Join(dir, "partition")) {
		disk = filepath.Dir(dir)
		start, err := readInt(filepath.Join(dir, "start"))
		if err != nil {
			return err
		}
		id.Start = start * sysfsSector
	}
	id.Disk = filepath.Base(disk)
	size, err := readInt(filepath.Join(dir, "size"))
	if err != nil {
		return err
	}
	diskSize, err := readInt(filepath.Join(disk, "size"))
	if err != nil {
		return err
	}
	id.Size, id.DiskSize = size*sysfsSector, diskSize*sysfsSector
	if seq, err := readInt(filepath.Join(disk, "diskseq")); err == nil {
		id.DiskSeq = uint64(seq)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	zoned, err := os.ReadFile(filepath.Join(disk, "queue", "zoned"))
	id.Zoned = err == nil && strings.TrimSpace(string(zoned)) != "none"
	id.BioBased = !exists(filepath.Join(disk, "mq"))
	dev, err := os.ReadFile(filepath.Join(disk, "dev"))
	if err != nil {
		return err
	}
	if _, err := fmt.Sscanf(string(dev), "%d:%d", &id.DiskMajor, &id.DiskMinor); err != nil {
		return fmt.Errorf("%s/dev: %q: %w", disk, dev, err)
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func readInt(path string) (int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}
