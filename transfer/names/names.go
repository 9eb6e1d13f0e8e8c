// Package names finds the device or image that a user names.
//
// For most uses, call [Source] or [Target]. A name is a path, a tag that blkid(8) knows
// (UUID=, LABEL=, PARTUUID=, PARTLABEL=) or, for a source, the mount point of a filesystem.
// The package refuses names that several devices answer to, and those that other programs
// take for a place on another machine. Functions may be called by several goroutines at
// once.
package names

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"tidemark/block"
	"tidemark/linux/blkid"
	"tidemark/linux/mounts"
	"tidemark/linux/sysfs"
)

// ErrAmbiguous says that several devices answer to a name.
var ErrAmbiguous = errors.New("refused: several devices answer to that name")

// ErrNone says that no device answers to a name.
var ErrNone = errors.New("no device has that name")

// Source returns the path of the source that a user names: by UUID=, LABEL=, PARTUUID= or
// PARTLABEL=, by the mount point of a filesystem, or by its path, which is returned as it
// is. The error wraps ErrNone, ErrAmbiguous, or blkid.ErrMissing.
func Source(ctx context.Context, name string) (string, error) {
	path, err := Target(ctx, name)
	if err != nil || path != name {
		return path, err
	}
	if info, err := os.Stat(name); err != nil || !info.IsDir() {
		return name, nil //nolint:nilerr // opening it says what is wrong
	}
	return mountedFrom(name)
}

// Target returns the path of the target that a user names: a device by UUID=, LABEL=,
// PARTUUID= or PARTLABEL=, or else its path, which is returned as it is. Errors are as those
// of Source.
func Target(ctx context.Context, name string) (string, error) {
	tag, ok := blkid.ParseTag(name)
	if !ok {
		return name, nil
	}
	if tag.Value == "" {
		return "", fmt.Errorf("%s: %w: it has no value", name, ErrNone)
	}
	found, err := blkid.Find(ctx, tag)
	if err != nil {
		return "", fmt.Errorf("%s: %w", tag, err)
	}
	paths, err := Topmost(found)
	switch {
	case err != nil:
		return "", fmt.Errorf("%s: %w", tag, err)
	case len(paths) == 0:
		return "", fmt.Errorf("%s: %w (root sees all of them)", tag, ErrNone)
	case len(paths) > 1:
		return "", fmt.Errorf("%s: %w: %s", tag, ErrAmbiguous, strings.Join(paths, ", "))
	}
	return paths[0], nil
}

// Noted is Target, and notes what it found.
func Noted(ctx context.Context, name string, note func(format string, args ...any)) (string, error) {
	path, err := Target(ctx, name)
	if err != nil {
		return "", fmt.Errorf("target: %w", err)
	}
	if path != name {
		note("%s is %s", name, path)
	}
	return path, nil
}

// Topmost returns the paths of the devices, without those that others of them are made of: a
// volume has the UUID of what it is made of.
func Topmost(found []blkid.Device) ([]string, error) {
	table, err := mounts.Read()
	if err != nil {
		return nil, err
	}
	var devs []sysfs.Dev
	paths := map[sysfs.Dev]string{}
	for _, d := range found {
		dev, err := mounts.DeviceOf(d.Path)
		if err != nil {
			return nil, err
		}
		devs, paths[dev] = append(devs, dev), d.Path
	}
	top, err := table.Topmost(devs)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, d := range top {
		names = append(names, paths[d])
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// mountedFrom returns the device of the filesystem that is mounted at dir; of a btrfs with
// several, the one that is the first of them wherever it comes up.
func mountedFrom(dir string) (string, error) {
	table, err := mounts.Read()
	if err != nil {
		return "", err
	}
	f, err := table.Of(dir)
	if err != nil {
		return "", err
	}
	if len(f.Members) == 0 {
		return "", fmt.Errorf("%s: %w: %s is on no block device of this machine", dir, block.ErrUnsupportedFile, f)
	}
	device, err := firstMember(f)
	if err != nil {
		return "", fmt.Errorf("%s: %s: %w", dir, f, err)
	}
	if !slices.ContainsFunc(f.Mounts, func(m mounts.Mount) bool { return m.PID == 0 && m.Point == Absolute(dir) }) {
		return "", fmt.Errorf("%s: %w: it is a folder of %s, and folders alone are not copied: name %s or %s",
			dir, block.ErrUnsupportedFile, f, f.Mounts[0].Point, device)
	}
	return device, nil
}

// firstMember returns the path of the device that a filesystem is named after.
func firstMember(f mounts.Filesystem) (string, error) {
	if f.Type != "btrfs" || len(f.Members) == 1 {
		return sysfs.Node(f.Members[0])
	}
	first, number := "", uint64(0)
	for _, member := range f.Members {
		path, err := sysfs.Node(member)
		if err != nil {
			return "", err
		}
		super, err := superblock(path)
		if err != nil {
			return "", err
		}
		if first == "" || super.Number < number {
			first, number = path, super.Number
		}
	}
	return first, nil
}

// superblock reads that of a device or image.
func superblock(path string) (mounts.Superblock, error) {
	d, err := block.Open(path, block.Options{Direct: true})
	if err != nil {
		return mounts.Superblock{}, err
	}
	defer d.Close()
	return mounts.ReadSuperblock(d, d.Size())
}
