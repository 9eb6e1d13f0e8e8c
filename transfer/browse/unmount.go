package browse

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"tidemark/linux/loop"
	"tidemark/linux/mounts"
)

// mark is the name of our loop devices and of our tmpfs.
const mark = "tidemark mount"

// mounted is one mount of this mount namespace.
type mounted struct {
	*mountinfo.Info
	ours bool
}

// top returns what is mounted on dir, the uppermost; nil where nothing is.
func top(dir string) (*mounted, error) {
	all, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
	if err != nil || len(all) == 0 {
		return nil, err
	}
	return look(all[len(all)-1])
}

// look finds out whether a mount is ours.
func look(info *mountinfo.Info) (*mounted, error) {
	ours, err := isOurs(info.FSType, info.Source)
	return &mounted{info, ours}, err
}

func isOurs(fstype, source string) (bool, error) {
	if fstype == "tmpfs" {
		return source == mark, nil
	}
	if !filepath.IsAbs(source) {
		return false, nil
	}
	dev, err := mounts.DeviceOf(source)
	if err != nil {
		return false, nil //nolint // a mount of something else, or of what is gone
	}
	name, err := loop.NameOf(dev)
	return name == mark, err
}

// Folder returns the folder that Unmount undoes f by, "" where f is not ours.
func Folder(f mounts.Filesystem) (string, error) {
	ours, err := isOurs(f.Type, f.Source)
	if err != nil || !ours {
		return "", err
	}
	for _, m := range f.Mounts {
		if m.PID != 0 {
			continue
		}
		if above, err := top(filepath.Dir(m.Point)); err == nil && above != nil && above.ours && above.FSType == "tmpfs" {
			return above.Mountpoint, nil
		}
		return m.Point, nil
	}
	return "", nil
}

// Unmount undoes a Mount on dir, and returns the mountpoints that are no more. Nothing is
// undone where the error wraps ErrNotOurs; ErrBusy says that programs use what is left.
func Unmount(dir string) (undone []string, err error) {
	if dir, err = folder(dir); err != nil {
		return nil, err
	}
	at, err := top(dir)
	switch {
	case err != nil:
		return nil, err
	case at == nil:
		return nil, fmt.Errorf("%s: %w: nothing is mounted there", dir, ErrNotOurs)
	case !at.ours:
		return nil, fmt.Errorf("%s: %w: %s is", dir, ErrNotOurs, cmp.Or(at.Source, at.FSType))
	}
	all, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, err
	}
	within := map[int]bool{at.ID: true}
	var points []string
	for _, info := range all { // a mount stands after the one it lies in
		if !within[info.ID] && !within[info.Parent] {
			continue
		}
		within[info.ID] = true
		m, err := look(info)
		if err != nil {
			return nil, err
		}
		if !m.ours {
			return nil, fmt.Errorf("%s: %w: unmount that first", m.Mountpoint, ErrNotOurs)
		}
		points = append(points, m.Mountpoint)
	}
	for _, point := range slices.Backward(points) {
		err := unix.Unmount(point, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) {
			err = ErrBusy
		}
		if err != nil {
			return undone, fmt.Errorf("%s: %w", point, err)
		}
		undone = append(undone, point)
	}
	return undone, forget()
}
