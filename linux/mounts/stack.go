package mounts

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"tidemark/linux/sysfs"
)

// A node is one block device in sysfs.
type node struct {
	dev       sysfs.Dev
	dir       string // real path of its folder
	partition bool
}

func (s system) node(d sysfs.Dev) (node, error) {
	dir, err := sysfs.Real(filepath.Join(s.sys, "dev/block", d.String()))
	if err != nil {
		return node{}, fmt.Errorf("device %s: %w", d, err)
	}
	return newNode(d, dir), nil
}

func newNode(d sysfs.Dev, dir string) node {
	_, err := os.Stat(filepath.Join(dir, "partition"))
	return node{dev: d, dir: dir, partition: err == nil}
}

func (n node) name() string { return filepath.Base(n.dir) }

func nodeAt(dir string) (node, error) {
	dir, err := sysfs.Real(dir)
	if err != nil {
		return node{}, err
	}
	number, err := sysfs.Text(filepath.Join(dir, "dev"))
	if err != nil {
		return node{}, err
	}
	d, err := sysfs.ParseDev(number)
	if err != nil {
		return node{}, fmt.Errorf("%s: %w", dir, err)
	}
	return newNode(d, dir), nil
}

// disk returns the whole disk that a partition is a slice of.
func (n node) disk() (node, error) {
	if !n.partition {
		return n, nil
	}
	return nodeAt(filepath.Dir(n.dir))
}

// partitions returns those of a disk, whose names begin with its own (add_partition in
// block/partitions/core.c).
func (n node) partitions() ([]node, error) {
	names, err := namesIn(n.dir, n.name())
	if err != nil {
		return nil, err
	}
	var nodes []node
	for _, name := range names {
		child, err := nodeAt(filepath.Join(n.dir, name))
		if absent(err) {
			continue // the table was read anew in between
		}
		if err != nil {
			return nil, err
		}
		if child.partition {
			nodes = append(nodes, child)
		}
	}
	return nodes, nil
}

// namesIn returns what is in a folder whose names begin with prefix, nothing where there is no folder.
func namesIn(dir, prefix string) ([]string, error) {
	f, err := os.Open(dir)
	if absent(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if absent(err) { // taken apart in between
		err = nil
	}
	names = slices.DeleteFunc(names, func(name string) bool { return !strings.HasPrefix(name, prefix) })
	slices.Sort(names)
	return names, err
}

// escapeGlob quotes names like "cciss!c0d0" and folders with brackets.
func escapeGlob(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

// linked follows the links in one of a device's folders, "holders" or "slaves".
func (s system) linked(n node, folder string) ([]node, error) {
	entries, err := os.ReadDir(filepath.Join(n.dir, folder))
	if absent(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var nodes []node
	for _, e := range entries {
		other, err := nodeAt(filepath.Join(s.sys, "class/block", e.Name()))
		if absent(err) {
			continue // taken apart in between
		}
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, other)
	}
	return nodes, nil
}

// span returns the sectors of the disk [start, end) that a partition covers.
func (n node) span() (start, end uint64, err error) {
	if start, err = sysfs.Uint(filepath.Join(n.dir, "start")); err != nil {
		return 0, 0, err
	}
	size, err := sysfs.Uint(filepath.Join(n.dir, "size"))
	return start, start + size, err
}

// Above returns d and every device whose writes reach d: its partitions, the devices made
// of it, the devices that share bytes with it, loop devices over these, and all devices
// above those. Loop devices over files on its filesystems do not count.
func (t *Table) Above(d sysfs.Dev) (map[sysfs.Dev]bool, error) {
	set := map[sysfs.Dev]bool{}
	if err := t.above(d, set); err != nil {
		return nil, fmt.Errorf("mounts: %w", err)
	}
	if err := t.overlapping(d, set); err != nil {
		return nil, fmt.Errorf("mounts: %w", err)
	}
	return set, nil
}

// above adds to set the device d and everything that stores its data there:
// partitions, holders, loop devices over it, and so on upwards.
func (t *Table) above(d sysfs.Dev, set map[sysfs.Dev]bool) error {
	if set[d] {
		return nil
	}
	set[d] = true
	n, err := t.sys.node(d)
	if err != nil {
		return err
	}
	over, err := t.sys.linked(n, "holders")
	if err != nil {
		return err
	}
	if !n.partition {
		parts, err := n.partitions()
		if err != nil {
			return err
		}
		over = append(over, parts...)
	}
	for _, l := range t.loops {
		if l.device == d {
			over = append(over, node{dev: l.dev})
		}
	}
	for _, o := range over {
		if err := t.above(o.dev, set); err != nil && !absent(err) {
			return err
		}
	}
	return nil
}

// overlapping adds the devices that share bytes with a partition without being above it:
// the whole disk, which may be used directly, and partitions laid over it.
func (t *Table) overlapping(d sysfs.Dev, set map[sysfs.Dev]bool) error {
	n, err := t.sys.node(d)
	if err != nil || !n.partition {
		return err
	}
	disk, err := n.disk()
	if err != nil {
		return err
	}
	set[disk.dev] = true
	start, end, err := n.span()
	if err != nil {
		return err
	}
	siblings, err := disk.partitions()
	if err != nil {
		return err
	}
	for _, p := range siblings {
		from, to, err := p.span()
		if err != nil {
			return err
		}
		if from < end && start < to {
			if err := t.above(p.dev, set); err != nil {
				return err
			}
		}
	}
	return nil
}

// below adds to set the devices that a write to d passes through: its disk, its slaves,
// and the device that a loop device lies on.
func (t *Table) below(d sysfs.Dev, set map[sysfs.Dev]bool) error {
	if set[d] {
		return nil
	}
	set[d] = true
	n, err := t.sys.node(d)
	if absent(err) {
		return nil // anonymous, or gone: nothing below it
	}
	if err != nil {
		return err
	}
	under, err := t.sys.linked(n, "slaves")
	if err != nil {
		return err
	}
	if n.partition {
		disk, err := n.disk()
		if err != nil {
			return err
		}
		under = append(under, disk)
	}
	if l := t.loopOf(d); l != nil && l.device != (sysfs.Dev{}) {
		under = append(under, node{dev: l.device})
	}
	for _, u := range under {
		if err := t.below(u.dev, set); err != nil {
			return err
		}
	}
	return nil
}
