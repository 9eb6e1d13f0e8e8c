package restore

import (
	"fmt"
	"path/filepath"

	"tidemark/block"
	"tidemark/linux/sysfs"
	"tidemark/transfer/origin"
	"tidemark/transfer/target"
	"tidemark/transfer/transaction"
)

// RefuseHalf refuses to copy from what a restore was cut off on: the copy that it
// was to be restored from would be overwritten with a mixture.
func RefuseHalf(path, stateDir string) error {
	t, err := target.Find(path, stateDir)
	if err != nil || !t.Exists {
		return nil // opening it says what is wrong
	}
	others := []string{t.Path}
	if t.Device {
		if others, err = overlapping(t.ID); err != nil {
			return err
		}
	}
	for _, other := range others {
		o, err := target.Find(other, stateDir)
		if err != nil {
			return err
		}
		record, is, err := Unfinished(o.Folder)
		if err != nil && !is && !target.CannotBeUsed(err) {
			return fmt.Errorf("%s: %s: %w", path, o.Folder, err)
		}
		if is {
			return fmt.Errorf("%s: %w (the copy of %s was to be restored onto %s)", path, ErrHalf, origin.Describe(record.Source), o.Path)
		}
	}
	return nil
}

// Recover finishes a restore onto t that was committed, or with discard forgets one that was
// cut off, and says in words what it did. The folder of t is locked.
func Recover(t *target.Target, discard bool) (string, error) {
	if t.Dir == nil {
		return "", fmt.Errorf("target: %s: %w", t.Path, ErrHalf)
	}
	if discard {
		if err := abandon(t.Dir); err != nil {
			return "", fmt.Errorf("target: %s: %w", t.Path, err)
		}
		return "forgot a restore that was cut off: it stays as it is, which may be neither what it was nor the copy", dissolve(t)
	}
	for _, look := range []func() error{func() error { return t.RefuseUsed() }, t.RefuseOpeners, func() error { return t.Open(0) }} {
		if err := look(); err != nil {
			return "", err
		}
	}
	store, err := openStore(transaction.Disk{Device: t.Disk}, t.Dir, kept{}, false)
	if err != nil {
		return "", fmt.Errorf("target: %s: %w", t.Path, err)
	}
	if told := store.Recovered(); told != "" && !store.Unfinished() {
		return told, dissolve(t)
	}
	return "", fmt.Errorf("target: %s: %w", t.Path, ErrHalf)
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
