package mounts

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"tidemark/linux/sysfs"
)

func (f *Filesystem) isOn(set map[sysfs.Dev]bool) bool {
	return slices.ContainsFunc(f.Members, func(d sysfs.Dev) bool { return set[d] })
}

// stack returns every device that stores its data on one of devs, counting the
// loop devices whose backing file lies on a filesystem there.
func (t *Table) stack(devs []sysfs.Dev) (map[sysfs.Dev]bool, error) {
	set := map[sysfs.Dev]bool{}
	for _, d := range devs {
		if err := t.above(d, set); err != nil {
			return nil, fmt.Errorf("mounts: %w", err)
		}
		if err := t.overlapping(d, set); err != nil {
			return nil, fmt.Errorf("mounts: %w", err)
		}
	}
	for grown := true; grown; {
		grown = false
		for i := range t.loops {
			l := &t.loops[i]
			home := t.home(l)
			if set[l.dev] || home == nil || !home.isOn(set) {
				continue
			}
			if err := t.above(l.dev, set); err != nil && !absent(err) {
				return nil, fmt.Errorf("mounts: %w", err)
			}
			grown = true
		}
	}
	return set, nil
}

// On returns the mounted filesystems that store data on any of the devices, each
// once, in the order in which they must be frozen: a filesystem that lies on another
// (through a loop device) before that other, and otherwise the last mounted first.
// Thaw in the opposite order. A partition does not bring in the filesystems of
// the other partitions; a whole disk brings in all.
func (t *Table) On(devs ...sysfs.Dev) ([]Filesystem, error) {
	set, err := t.stack(devs)
	if err != nil {
		return nil, err
	}
	var on []*Filesystem
	for _, f := range t.filesystems {
		if f.isOn(set) {
			on = append(on, f)
		}
	}
	return t.freezeOrder(on)
}

// freezeOrder sorts: reverse mount order, then each behind all that lie on it.
func (t *Table) freezeOrder(list []*Filesystem) ([]Filesystem, error) {
	slices.SortStableFunc(list, func(a, b *Filesystem) int { return b.order - a.order })
	under := map[*Filesystem]map[*Filesystem]bool{}
	for _, f := range list {
		set := map[*Filesystem]bool{}
		for _, d := range f.Members {
			if err := t.through(d, set); err != nil {
				return nil, fmt.Errorf("mounts: %w", err)
			}
		}
		under[f] = set
	}
	var out []Filesystem
	done := map[*Filesystem]bool{}
	var visit func(f *Filesystem)
	visit = func(f *Filesystem) {
		if done[f] {
			return
		}
		done[f] = true
		for _, over := range list {
			if under[over][f] {
				visit(over)
			}
		}
		out = append(out, *f)
	}
	for _, f := range list {
		visit(f)
	}
	return out, nil
}

// through adds the filesystems that a write to device d passes through: those that hold
// the files behind loop devices, and the filesystems below these.
func (t *Table) through(d sysfs.Dev, set map[*Filesystem]bool) error {
	devs := map[sysfs.Dev]bool{}
	if err := t.below(d, devs); err != nil {
		return err
	}
	for u := range devs {
		l := t.loopOf(u)
		if l == nil {
			continue
		}
		if err := t.throughFilesystem(t.home(l), set); err != nil {
			return err
		}
	}
	return nil
}

func (t *Table) throughFilesystem(f *Filesystem, set map[*Filesystem]bool) error {
	if f == nil || set[f] {
		return nil
	}
	set[f] = true
	for _, d := range f.Members {
		if err := t.through(d, set); err != nil {
			return err
		}
	}
	return t.throughOverlay(f, set)
}

// throughOverlay follows an overlay to the filesystem that its writes go to.
func (t *Table) throughOverlay(f *Filesystem, set map[*Filesystem]bool) error {
	if f.Type != "overlay" {
		return nil
	}
	for o := range strings.SplitSeq(f.options, ",") {
		dir, ok := cutAny(o, "upperdir=", "workdir=")
		if !ok {
			continue
		}
		upper, err := t.of(unescapeOctal(dir))
		if err != nil {
			continue // a path of another namespace
		}
		if err := t.throughFilesystem(upper, set); err != nil {
			return err
		}
	}
	return nil
}

// Through returns the filesystems that a write to path passes through: first the
// filesystem that path lies on, then those that hold the files behind its devices. A path
// that does not exist yet counts as its nearest existing parent; for a block device the
// answer begins with the filesystems below the device. Through cannot follow a network or
// a FUSE server back to this machine.
func (t *Table) Through(path string) ([]Filesystem, error) {
	set := map[*Filesystem]bool{}
	if d, err := DeviceOf(path); err == nil {
		if err := t.through(d, set); err != nil {
			return nil, fmt.Errorf("mounts: %s: %w", path, err)
		}
		return values(set, nil), nil
	}
	f, err := t.of(path)
	if err != nil {
		return nil, fmt.Errorf("mounts: %s: %w", path, err)
	}
	if err := t.throughFilesystem(f, set); err != nil {
		return nil, fmt.Errorf("mounts: %s: %w", path, err)
	}
	return values(set, f), nil
}

// values puts first in front, unless it is nil, and orders the rest by mount.
func values(set map[*Filesystem]bool, first *Filesystem) []Filesystem {
	var out []Filesystem
	for f := range set {
		if f != first {
			out = append(out, *f)
		}
	}
	slices.SortFunc(out, func(a, b Filesystem) int { return b.order - a.order })
	if first != nil {
		out = slices.Insert(out, 0, *first)
	}
	return out
}

// Of returns the filesystem that path, or its nearest existing parent, lies on.
func (t *Table) Of(path string) (Filesystem, error) {
	f, err := t.of(path)
	if err != nil {
		return Filesystem{}, fmt.Errorf("mounts: %s: %w", path, err)
	}
	return *f, nil
}

func (t *Table) of(path string) (*Filesystem, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	for {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err == unix.ENOENT && path != "/" {
			path = filepath.Dir(path)
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		defer unix.Close(fd)
		return t.ofDescriptor(fd)
	}
}

func (t *Table) ofDescriptor(fd int) (*Filesystem, error) {
	id, err := mountID(fd)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	if f := t.byMount(id, sysfs.DevOf(st.Dev)); f != nil {
		return f, nil
	}
	return nil, fmt.Errorf("mount %d is not in the table: %w", id, unix.ESTALE)
}

// mountID asks for the mount that an open file was reached through.
func mountID(fd int) (int, error) {
	b, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			return strconv.Atoi(strings.TrimSpace(rest))
		}
	}
	return 0, fmt.Errorf("fdinfo: no mnt_id: %w", unix.ENOSYS)
}
