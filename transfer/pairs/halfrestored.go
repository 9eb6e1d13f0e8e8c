package pairs

import (
	"fmt"
	"path/filepath"

	"tidemark/block"
	"tidemark/linux/sysfs"
	"tidemark/transfer/restore"
)

// refuseHalfRestored refuses to copy from what a restore was cut off on: the copy that it
// was to be restored from would be overwritten with a mixture.
func refuseHalfRestored(path, stateDir string) error {
	t, err := findTarget(path, stateDir)
	if err != nil || !t.exists {
		return nil // opening it says what is wrong
	}
	others := []string{t.path}
	if t.device {
		if others, err = overlapping(t.id); err != nil {
			return err
		}
	}
	for _, other := range others {
		o, err := findTarget(other, stateDir)
		if err != nil {
			return err
		}
		record, is, err := restore.Unfinished(o.folder)
		if err != nil {
			return fmt.Errorf("%s: %s: %w", path, o.folder, err)
		}
		if is {
			return fmt.Errorf("%s: %w (the copy of %s was to be restored onto %s)", path, ErrHalfRestored, describe(record.Source), o.path)
		}
	}
	return nil
}

// overlapping returns the paths of a device, of the disk that it is a partition of, and of
// the partitions that share bytes with it.
func overlapping(id block.Identity) (paths []string, err error) {
	all := []sysfs.Dev{{Major: id.DiskMajor, Minor: id.DiskMinor}}
	found, err := filepath.Glob(filepath.Join(sysfs.DiskDir(id.Disk), "*", "partition"))
	if err != nil {
		return nil, err
	}
	for _, file := range found {
		text, err := sysfs.Text(filepath.Join(filepath.Dir(file), "dev"))
		if err != nil {
			return nil, err
		}
		d, err := sysfs.ParseDev(text)
		if err != nil {
			return nil, err
		}
		all = append(all, d)
	}
	paths = append(paths, id.Path) // which may have no node elsewhere
	for _, d := range all {
		other, err := block.IdentifyDev(d)
		if err != nil {
			return nil, err
		}
		if other.Path != "" && overlaps(id, other) {
			paths = append(paths, other.Path)
		}
	}
	return paths, nil
}
