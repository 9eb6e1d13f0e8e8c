package dmsnap

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"tidemark/linux/dm"
	"tidemark/linux/mounts"
	"tidemark/linux/sysfs"
)

// StoreUnused returns nil when no dm-snapshot device uses the block device or file at path as
// its store. The error wraps ErrLive, and names the snapshot and the remedy.
func StoreUnused(path string) error {
	return judge(path, func(devs []sysfs.Dev, snapshots []Snapshot, _ []Origin) error {
		for _, s := range snapshots {
			switch {
			case !slices.Contains(devs, s.Store):
			case s.Merge:
				return fmt.Errorf("store %s: %w: the kernel merges it into %s: wait until that has ended", path, ErrLive, s.Path())
			default:
				return fmt.Errorf("store %s: %w: %s: %s", path, ErrLive, s.Path(), s.end())
			}
		}
		return nil
	})
}

// OriginUnused returns nil when a store can be applied to the block device or file at path
// without harm to any dm-snapshot device: none has it as its origin, and none brings a store
// back to it. What is written through a device of the target snapshot-origin, the kernel
// copies to the stores of its snapshots first; so that one is not refused. The error wraps
// ErrLive, and names the device and the remedy.
func OriginUnused(path string) error {
	return judge(path, func(devs []sysfs.Dev, snapshots []Snapshot, origins []Origin) error {
		for _, s := range snapshots {
			switch {
			case s.Merge && (slices.Contains(devs, s.Origin) || slices.Contains(devs, s.Dev())):
				return fmt.Errorf("origin %s: %w: the kernel merges a store into it, as %s: wait until that has ended", path, ErrLive, s.Path())
			case slices.Contains(devs, s.Origin):
				return fmt.Errorf("origin %s: %w: %s would change with it: %s", path, ErrLive, s.Path(), s.end())
			}
		}
		for _, o := range origins {
			if slices.Contains(devs, o.Below) {
				return fmt.Errorf("origin %s: %w: it lies below %s, whose snapshots would miss what is written: %s", path, ErrLive, o.Path(), end(o.Info))
			}
		}
		return nil
	})
}

// judge hands what is known of the device at path, or of the loop devices over it, to look.
func judge(path string, look func([]sysfs.Dev, []Snapshot, []Origin) error) error {
	table, err := mounts.Read()
	if err != nil {
		return fmt.Errorf("dmsnap: %s: %w", path, err)
	}
	devs, err := table.LoopsOver(path)
	if err != nil {
		return fmt.Errorf("dmsnap: %s: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fmt.Errorf("dmsnap: %w", &fs.PathError{Op: "stat", Path: path, Err: err})
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		devs = append(devs, sysfs.DevOf(st.Rdev))
	}
	if len(devs) == 0 {
		return nil
	}
	ctl, err := dm.Open()
	if errors.Is(err, dm.ErrNotSupported) {
		return nil
	}
	if err != nil {
		return err
	}
	defer ctl.Close()
	snapshots, origins, err := List(ctl)
	if err != nil {
		return err
	}
	return look(devs, snapshots, origins)
}

// end is how a user ends a snapshot without losing its store.
func (s Snapshot) end() string { return end(s.Info) }

func end(i dm.Info) string {
	if strings.HasPrefix(i.UUID, "LVM-") {
		return "LVM has it active: name the volumes with --lv and --snapshot instead"
	}
	return fmt.Sprintf("\"dmsetup remove %s\" ends it, and leaves the store", i.Name)
}
