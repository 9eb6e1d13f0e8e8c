package pairs

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

// ErrAmbiguous says that several devices answer to a name. It wraps ErrRefused.
var ErrAmbiguous = fmt.Errorf("%w: several devices answer to that name", ErrRefused)

// ErrName says that no device answers to a name.
var ErrName = errors.New("no device has that name")

// SourcePath returns the path of the source that a user names: by UUID=, LABEL=, PARTUUID= or
// PARTLABEL=, by the mount point of a filesystem, or by its path, which is returned as it
// is. The error wraps ErrName, ErrAmbiguous, or blkid.ErrMissing.
func SourcePath(ctx context.Context, name string) (string, error) {
	path, err := TargetPath(ctx, name)
	if err != nil || path != name {
		return path, err
	}
	if info, err := os.Stat(name); err != nil || !info.IsDir() {
		return name, nil //nolint:nilerr // opening it says what is wrong
	}
	return mountedFrom(name)
}

// TargetPath returns the path of the target that a user names: a device by UUID=, LABEL=,
// PARTUUID= or PARTLABEL=, or else its path, which is returned as it is. Errors are as those
// of SourcePath.
func TargetPath(ctx context.Context, name string) (string, error) {
	tag, ok := blkid.ParseTag(name)
	if !ok {
		return name, nil
	}
	if tag.Value == "" {
		return "", fmt.Errorf("%s: %w: it has no value", name, ErrName)
	}
	found, err := blkid.Find(ctx, tag)
	if err != nil {
		return "", fmt.Errorf("%s: %w", tag, err)
	}
	paths, err := topmost(found)
	switch {
	case err != nil:
		return "", fmt.Errorf("%s: %w", tag, err)
	case len(paths) == 0:
		return "", fmt.Errorf("%s: %w (root sees all of them)", tag, ErrName)
	case len(paths) > 1:
		return "", fmt.Errorf("%s: %w: %s", tag, ErrAmbiguous, strings.Join(paths, ", "))
	}
	return paths[0], nil
}

// target is TargetPath, and tells what it found.
func (o Options) target(ctx context.Context, name string) (string, error) {
	path, err := TargetPath(ctx, name)
	if err != nil {
		return "", fmt.Errorf("target: %w", err)
	}
	if path != name {
		o.note("%s is %s", name, path)
	}
	return path, nil
}

// topmost returns the paths of the devices, without those that others of them are made of: a
// volume has the UUID of what it is made of.
func topmost(found []blkid.Device) ([]string, error) {
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
	if !slices.ContainsFunc(f.Mounts, func(m mounts.Mount) bool { return m.PID == 0 && m.Point == absolute(dir) }) {
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

// ParsePair takes SRC=DST apart, at the first "=" that does not belong to a tag: the second
// one where SRC is UUID=, LABEL=, PARTUUID= or PARTLABEL=. A label with an "=" cannot be
// written so.
func ParsePair(text string) (Pair, error) {
	rest, prefix := text, ""
	if tag, ok := blkid.ParseTag(text); ok {
		prefix, rest = string(tag.Key)+"=", tag.Value
	}
	src, dst, ok := strings.Cut(rest, "=")
	if !ok || src == "" || dst == "" {
		return Pair{}, fmt.Errorf("%q is not SRC=DST", text)
	}
	return Pair{Source: prefix + src, Target: dst}, nil
}
