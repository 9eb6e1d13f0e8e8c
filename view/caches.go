package view

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"tidemark/linux/mounts"
	"tidemark/linux/sysfs"
)

// caches are the block devices that the sources are, or that store data there:
// partitions, device-mapper and loop devices, the topmost first. Each has a page cache
// of its own, which neither the freeze of a filesystem above it nor a direct read of
// the source below it writes out: that of the source itself holds what a loop device
// over it wrote, that of a partition what a program wrote to it raw.
type caches []*os.File

// openCaches opens the devices above roots. A device that is gone, or that nobody can
// open now (without a medium, a DRBD device in the secondary role), has no cache. One
// that this program may not open is passed over: auto refuses it, and a view that is
// chosen by hand has warned of it (Choose).
func openCaches(t *mounts.Table, roots []sysfs.Dev) (caches, error) {
	above := map[sysfs.Dev]int{} // how many devices are above it, and itself
	for _, root := range roots {
		all, err := t.Above(root)
		if err != nil {
			return nil, err
		}
		for d := range all {
			over, err := t.Above(d)
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			above[d] = len(over)
		}
	}
	var order []sysfs.Dev
	for d := range above {
		order = append(order, d)
	}
	// A device has more above it than any of those.
	slices.SortFunc(order, func(a, b sysfs.Dev) int { return cmp.Compare(above[a], above[b]) })
	var c caches
	for _, d := range order {
		f, err := openCache(d)
		if err != nil {
			c.close()
			return nil, err
		}
		if f != nil {
			c = append(c, f)
		}
	}
	return c, nil
}

func openCache(d sysfs.Dev) (*os.File, error) {
	path, err := sysfs.Node(d)
	if err != nil {
		return nil, nil //nolint:nilerr // without a node nobody can have written to it
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC, 0)
	for _, none := range []error{os.ErrNotExist, os.ErrPermission, unix.ENXIO, unix.ENOMEDIUM, unix.EMEDIUMTYPE} {
		if errors.Is(err, none) {
			return nil, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("page cache of %s: %w", path, err)
	}
	return f, nil
}

// write brings what the caches hold to the sources. It flushes no disk: a reader sees
// what the disk has been given.
func (c caches) write() error {
	for _, f := range c {
		err := unix.SyncFileRange(int(f.Fd()), 0, 0,
			unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
		if err != nil {
			return fmt.Errorf("write out the page cache of %s: %w", f.Name(), err)
		}
	}
	return nil
}

func (c caches) close() {
	for _, f := range c {
		f.Close()
	}
}
