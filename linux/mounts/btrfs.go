package mounts

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"tidemark/linux/sysfs"
)

// btrfs is one mounted btrfs. Its superblock carries an anonymous number, so that only
// sysfs shows its devices.
type btrfs struct {
	id      string // UUID
	devices []sysfs.Dev
}

func (s system) readBtrfs() ([]btrfs, error) {
	dirs, err := filepath.Glob(filepath.Join(escapeGlob(s.sys), "fs/btrfs/*/devices"))
	if err != nil {
		return nil, err
	}
	var all []btrfs
	for _, dir := range dirs {
		b := btrfs{id: filepath.Base(filepath.Dir(dir))}
		entries, err := os.ReadDir(dir)
		if absent(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			// A missing member of a degraded array has no device behind it.
			if n, err := nodeAt(filepath.Join(dir, e.Name())); err == nil {
				b.devices = append(b.devices, n.dev)
			}
		}
		all = append(all, b)
	}
	return all, nil
}

// membersOf returns the block devices that a filesystem stores data on.
func (t *Table) membersOf(f *Filesystem) []sysfs.Dev {
	if f.Type == "btrfs" {
		return t.btrfsMembers(f)
	}
	var devs []sysfs.Dev
	if f.Dev.Major != 0 {
		devs = append(devs, f.Dev)
	} else {
		devs = t.sourceDevices(f.Source)
	}
	if f.Dev.Major != 0 && strings.HasPrefix(f.Type, "ext") {
		if journal, ok := t.journalOf(f); ok {
			devs = append(devs, journal)
		}
	}
	for o := range strings.SplitSeq(f.options, ",") {
		// XFS may keep its log and its real-time data on devices of their own.
		if v, ok := cutAny(o, "logdev=", "rtdev="); ok {
			devs = append(devs, t.sourceDevices(v)...)
		}
	}
	return devs
}

func cutAny(s string, prefixes ...string) (string, bool) {
	for _, p := range prefixes {
		if rest, ok := strings.CutPrefix(s, p); ok {
			return rest, true
		}
	}
	return "", false
}

// btrfsMembers takes the filesystem whose devices include the mount's source. For a
// source that cannot be resolved (its node is not in this root) it takes the devices of
// every btrfs that no other mount belongs to: one filesystem too many is frozen rather
// than one too few.
func (t *Table) btrfsMembers(f *Filesystem) []sysfs.Dev {
	source := t.sourceDevices(f.Source)
	if b := t.btrfsOn(source); b != nil {
		return b.devices
	}
	claimed := map[string]bool{}
	for _, other := range t.filesystems {
		if other.Type != "btrfs" {
			continue
		}
		if b := t.btrfsOn(t.sourceDevices(other.Source)); b != nil {
			claimed[b.id] = true
		}
	}
	devs := source
	for _, b := range t.btrfs {
		if !claimed[b.id] {
			devs = append(devs, b.devices...)
		}
	}
	return devs
}

func (t *Table) btrfsOn(devs []sysfs.Dev) *btrfs {
	for i, b := range t.btrfs {
		if slices.ContainsFunc(devs, func(d sysfs.Dev) bool { return slices.Contains(b.devices, d) }) {
			return &t.btrfs[i]
		}
	}
	return nil
}

// sourceDevices resolves the source of a mount, one path or several with colons
// between them, to block devices. A source that is no path (tmpfs, a share) has none.
func (t *Table) sourceDevices(source string) []sysfs.Dev {
	if !strings.HasPrefix(source, "/") {
		return nil
	}
	if d, ok := t.sourceDevice(source); ok {
		return []sysfs.Dev{d}
	}
	var devs []sysfs.Dev
	for p := range strings.SplitSeq(source, ":") {
		if d, ok := t.sourceDevice(p); ok {
			devs = append(devs, d)
		}
	}
	return devs
}

// sourceDevice resolves one path: by its node, else by its kernel name, else by its
// device-mapper name.
func (t *Table) sourceDevice(path string) (sysfs.Dev, bool) {
	if d, err := DeviceOf(path); err == nil {
		return d, true
	}
	if n, err := nodeAt(filepath.Join(t.sys.sys, "class/block", filepath.Base(path))); err == nil {
		return n.dev, true
	}
	mappers, err := namesIn(filepath.Join(t.sys.sys, "block"), "dm-")
	if err != nil {
		return sysfs.Dev{}, false
	}
	for _, mapper := range mappers {
		dir := filepath.Join(t.sys.sys, "block", mapper)
		name, err := sysfs.Text(filepath.Join(dir, "dm/name"))
		if err != nil || name != filepath.Base(path) {
			continue
		}
		if n, err := nodeAt(dir); err == nil {
			return n.dev, true
		}
	}
	return sysfs.Dev{}, false
}
