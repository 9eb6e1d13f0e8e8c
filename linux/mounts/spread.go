package mounts

import (
	"cmp"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"tidemark/linux/sysfs"
)

// Spread is a filesystem, or a device that is made of others, that stores data on devices
// that were asked for and on others too.
type Spread struct {
	Name    string      // "btrfs on /srv (/dev/vdb1)", "/dev/md0 with ext4 on …", "volume group 3dF2…"
	On      []sysfs.Dev // those that were asked for, which hold a part of it
	Missing []sysfs.Dev // the others
	Device  sysfs.Dev   // the device that is whole; zero for a filesystem or a volume group
}

// Spread returns what lies on the devices, but not on them alone: mounted filesystems, and
// devices of md, device-mapper and bcache that are in use. A device counts as given where it
// is a partition of one that is, or made of such devices alone. Loop devices over files on
// the filesystems are passed over.
func (t *Table) Spread(devs ...sysfs.Dev) ([]Spread, error) {
	s := spreading{t, map[sysfs.Dev]bool{}, map[sysfs.Dev]bool{}}
	for _, d := range devs {
		s.given[d] = true
		if err := t.above(d, s.above); err != nil {
			return nil, fmt.Errorf("mounts: %w", err)
		}
		if err := t.overlapping(d, s.above); err != nil {
			return nil, fmt.Errorf("mounts: %w", err)
		}
	}
	var all []Spread
	for _, f := range t.filesystems {
		if f.isOn(s.above) {
			all = append(all, s.part(f.String(), f.Members))
		}
	}
	for d := range s.above {
		stacked, err := s.stacked(d)
		if err != nil {
			return nil, fmt.Errorf("mounts: %w", err)
		}
		all = append(all, stacked...)
	}
	all = slices.DeleteFunc(all, func(p Spread) bool { return len(p.Missing) == 0 || len(p.On) == 0 })
	slices.SortFunc(all, func(a, b Spread) int { return strings.Compare(a.Name, b.Name) })
	return slices.CompactFunc(all, func(a, b Spread) bool { return a.Name == b.Name }), nil
}

// spreading is one question of Spread.
type spreading struct {
	*Table
	given, above map[sysfs.Dev]bool
}

// part divides members by whether they are given.
func (s spreading) part(name string, members []sysfs.Dev) Spread {
	p := Spread{Name: name}
	for _, m := range members {
		switch {
		case s.covered(m):
			p.On = append(p.On, m)
		case !slices.Contains(p.Missing, m):
			p.Missing = append(p.Missing, m)
		}
	}
	return p
}

// covered reports whether all that is on d is on the devices that were given. A device that
// is gone is not.
func (s spreading) covered(d sysfs.Dev) bool {
	if s.given[d] {
		return true
	}
	if l := s.loopOf(d); l != nil {
		return l.device != (sysfs.Dev{}) && s.covered(l.device)
	}
	n, err := s.sys.node(d)
	if err != nil {
		return false
	}
	if n.partition {
		disk, err := n.disk()
		return err == nil && s.covered(disk.dev)
	}
	under, err := s.slaves(n)
	if n.isEra() {
		return slices.ContainsFunc(under, s.covered)
	}
	return err == nil && len(under) > 0 && !slices.ContainsFunc(under, func(u sysfs.Dev) bool { return !s.covered(u) })
}

// isEra reports whether a device is one of package dmera's: what it holds is that of its data
// device; its metadata only tells what changed.
func (n node) isEra() bool {
	id, err := sysfs.Text(filepath.Join(n.dir, "dm/uuid"))
	return err == nil && strings.HasPrefix(id, "TIDEMARK-ERA-")
}

// stacked returns the device d, and the volume group that it belongs to, where they lie on
// devices that are not given.
func (s spreading) stacked(d sysfs.Dev) ([]Spread, error) {
	n, err := s.sys.node(d)
	if err != nil || s.given[d] || n.partition || n.isEra() {
		return nil, ignoreAbsent(err)
	}
	under, err := s.slaves(n)
	if err != nil {
		return nil, err
	}
	name, err := s.nameOf(n)
	if err != nil {
		return nil, err
	}
	device := s.part(name, under)
	device.Device = d
	group := n.volumeGroup()
	if group == "" {
		return []Spread{device}, nil
	}
	volumes, err := s.volumes(group)
	return []Spread{device, s.part("volume group "+group, volumes)}, err
}

func (s spreading) slaves(n node) ([]sysfs.Dev, error) {
	under, err := s.sys.linked(n, "slaves")
	var devs []sysfs.Dev
	for _, u := range under {
		devs = append(devs, u.dev)
	}
	return devs, ignoreAbsent(err)
}

// volumes returns what the active volumes of a volume group lie on, but for its own volumes.
func (s spreading) volumes(group string) ([]sysfs.Dev, error) {
	names, err := namesIn(filepath.Join(s.sys.sys, "block"), "dm-")
	if err != nil {
		return nil, err
	}
	var devs []sysfs.Dev
	for _, name := range names {
		n, err := nodeAt(filepath.Join(s.sys.sys, "block", name))
		if err != nil || n.volumeGroup() != group {
			continue // taken apart in between, or another's
		}
		under, err := s.sys.linked(n, "slaves")
		if err != nil {
			return nil, err
		}
		for _, u := range under {
			if u.volumeGroup() != group {
				devs = append(devs, u.dev)
			}
		}
	}
	return devs, nil
}

// volumeGroup returns the UUID of the volume group that a logical volume belongs to, with
// which LVM begins that of its device; "" for other devices.
func (n node) volumeGroup() string {
	const idLen = 32
	id, err := sysfs.Text(filepath.Join(n.dir, "dm/uuid"))
	id, ok := strings.CutPrefix(id, "LVM-")
	if err != nil || !ok || len(id) < idLen {
		return ""
	}
	return id[:idLen]
}

// nameOf names a device as people know it, with what is mounted from it.
func (s spreading) nameOf(n node) (string, error) {
	on, err := s.On(n.dev)
	if err != nil {
		return "", err
	}
	path := n.path()
	if name, err := sysfs.Text(filepath.Join(n.dir, "dm/name")); err == nil {
		path = "/dev/mapper/" + name
	}
	var words []string
	for _, f := range on {
		words = append(words, f.String())
	}
	if len(words) > 0 {
		path += " with " + strings.Join(words, ", ")
	}
	return path, nil
}

func ignoreAbsent(err error) error {
	if absent(err) {
		return nil
	}
	return err
}

// Topmost leaves out of the devices those that others of them are made of: who uses these
// goes through the others. A loop device leaves what it lies on in use, and does not count.
func (t *Table) Topmost(devs []sysfs.Dev) ([]sysfs.Dev, error) {
	var top []sysfs.Dev
	for _, d := range devs {
		over := map[sysfs.Dev]bool{}
		if err := t.held(d, over); err != nil {
			return nil, fmt.Errorf("mounts: %w", err)
		}
		if !slices.ContainsFunc(devs, func(o sysfs.Dev) bool { return over[o] }) {
			top = append(top, d)
		}
	}
	return top, nil
}

// held adds to set what is made of d.
func (t *Table) held(d sysfs.Dev, set map[sysfs.Dev]bool) error {
	n, err := t.sys.node(d)
	if err != nil {
		return err
	}
	over, err := t.sys.linked(n, "holders")
	for _, o := range over {
		if err == nil && !set[o.dev] {
			set[o.dev] = true
			err = t.held(o.dev, set)
		}
	}
	return err
}

// Idle returns the devices that hold nothing but what the given ones hold, and that nobody
// uses: no filesystem or swap area in use is on them, no device is made of them, and they
// have no partitions. What lies on one of these is told by its superblock alone.
func (t *Table) Idle(devs ...sysfs.Dev) ([]sysfs.Dev, error) {
	s := spreading{t, map[sysfs.Dev]bool{}, map[sysfs.Dev]bool{}}
	for _, d := range devs {
		s.given[d] = true
		if err := t.above(d, s.above); err != nil {
			return nil, fmt.Errorf("mounts: %w", err)
		}
	}
	var idle []sysfs.Dev
	for d := range s.above {
		n, err := t.sys.node(d)
		if absent(err) {
			continue
		}
		used := false
		if err == nil {
			used, err = t.inUse(n)
		}
		if err != nil {
			return nil, fmt.Errorf("mounts: %w", err)
		}
		if !used && s.covered(d) {
			idle = append(idle, d)
		}
	}
	slices.SortFunc(idle, compare)
	return idle, nil
}

func (t *Table) inUse(n node) (bool, error) {
	if used, err := t.user(n); used || err != nil || n.partition {
		return used, err
	}
	parts, err := n.partitions()
	return len(parts) > 0, err
}

// Over returns the devices at the top of what is made of d, loop devices left out; none where d is no part of anything.
func (t *Table) Over(d sysfs.Dev) ([]sysfs.Dev, error) {
	over := map[sysfs.Dev]bool{}
	if err := t.held(d, over); err != nil {
		return nil, fmt.Errorf("mounts: %w", err)
	}
	return t.Topmost(slices.SortedFunc(maps.Keys(over), compare))
}

func compare(a, b sysfs.Dev) int {
	return cmp.Or(cmp.Compare(a.Major, b.Major), cmp.Compare(a.Minor, b.Minor))
}
