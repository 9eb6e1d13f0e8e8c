package pairs

import (
	"fmt"
	"path/filepath"

	"tidemark/block"
	"tidemark/linux/sysfs"
	"tidemark/transfer/restore"
	"tidemark/transfer/transaction"
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
		if err != nil && !is && !cannotBeUsed(err) {
			return fmt.Errorf("%s: %s: %w", path, o.folder, err)
		}
		if is {
			return fmt.Errorf("%s: %w (the copy of %s was to be restored onto %s)", path, ErrHalfRestored, describe(record.Source), o.path)
		}
	}
	return nil
}

// recoverRestore finishes a restore that was committed, or forgets one that was cut off.
func (t *target) recoverRestore(discard bool) (string, error) {
	if t.dir == nil {
		return "", fmt.Errorf("target: %s: %w", t.path, ErrHalfRestored)
	}
	if discard {
		if err := restore.Discard(t.dir); err != nil {
			return "", fmt.Errorf("target: %s: %w", t.path, err)
		}
		return "forgot a restore that was cut off: it stays as it is, which may be neither what it was nor the copy", t.dissolve()
	}
	for _, look := range []func() error{func() error { return t.refuseUsed(nil) }, t.refuseOpeners, func() error { return t.openDisk(0) }} {
		if err := look(); err != nil {
			return "", err
		}
	}
	store, err := restore.Open(transaction.Disk{Device: t.disk}, t.dir, restore.Copy{}, false)
	if err != nil {
		return "", fmt.Errorf("target: %s: %w", t.path, err)
	}
	if told := store.Recovered(); told != "" && !store.Unfinished() {
		return told, t.dissolve()
	}
	return "", fmt.Errorf("target: %s: %w", t.path, ErrHalfRestored)
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
		if other.Path != "" && id.Overlaps(other) {
			paths = append(paths, other.Path)
		}
	}
	return paths, nil
}
