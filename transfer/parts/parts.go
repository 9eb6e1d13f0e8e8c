// Package parts finds what lies on the sources of a copy and on other devices too: a
// filesystem on several devices, or with a log or journal elsewhere, and what md, LVM and
// bcache make of several.
//
// For most uses, call [Of] before a copy is begun, and [InUse] when it has ended: a device
// may have been added meanwhile. Functions may be called by several goroutines at once.
package parts

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"tidemark/block"
	"tidemark/linux/mounts"
	"tidemark/linux/sysfs"
)

// ErrPart says that a filesystem, or a device, lies on the sources and on other devices
// too.
var ErrPart = errors.New("refused: not all of it would be copied")

// A Part is something that lies on devices of which a run would not copy all.
type Part struct {
	Name    string   // "btrfs on /srv (/dev/vdb1)"
	Source  int      // the index of a source that holds some of it
	Instead string   // the device that is all of it; "" where there is none
	Missing []string // paths of the other devices
	Unknown string   // what else is missing, in words
}

// String says what is missing.
func (p Part) String() string {
	var lacks []string
	if len(p.Missing) > 0 {
		lacks = append(lacks, strings.Join(p.Missing, ", "))
	}
	if p.Unknown != "" {
		lacks = append(lacks, p.Unknown)
	}
	text := fmt.Sprintf("%s needs %s as well", p.Name, strings.Join(lacks, ", "))
	if p.Instead != "" {
		text += fmt.Sprintf(" (name %s instead: it is all of it)", p.Instead)
	}
	return text
}

// Refuse returns an error that wraps ErrPart for parts of sources.
func Refuse(parts []Part, sources []*block.Device) error {
	return fmt.Errorf("source: %s: %w: %s", sources[parts[0].Source].Path(), ErrPart, Describe(parts))
}

// Describe says what is missing of all parts.
func Describe(parts []Part) string {
	var texts []string
	for _, p := range parts {
		texts = append(texts, p.String())
	}
	return strings.Join(texts, "; ")
}

// Of finds what lies on the sources and on other devices too. The kernel tells of what is
// in use, superblocks of the rest. What cannot be told is noted.
func Of(ctx context.Context, sources []*block.Device, note func(format string, args ...any)) ([]Part, error) {
	held, parts, err := hold(sources)
	if err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	held.note = note
	if err := held.readIdle(sources); err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	idle, err := held.idleParts(ctx)
	if err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	return append(parts, idle...), nil
}

// InUse is Of for what is in use, of which the kernel tells at once.
func InUse(sources []*block.Device) ([]Part, error) {
	_, parts, err := hold(sources)
	return parts, err
}

// hold looks at what is in use on the sources, and returns what of it is in parts.
func hold(sources []*block.Device) (held holding, parts []Part, err error) {
	held.of = map[sysfs.Dev]int{}
	if held.table, err = mounts.Read(); err != nil {
		return held, nil, err
	}
	for i, src := range sources {
		if err := held.add(i, src); err != nil {
			return held, nil, fmt.Errorf("%s: %w", src.Path(), err)
		}
	}
	parts, err = held.inUse()
	return held, parts, err
}

// holding is what the sources hold.
type holding struct {
	table  *mounts.Table
	roots  []sysfs.Dev
	of     map[sysfs.Dev]int // the source that a device lies on
	supers []super
	note   func(format string, args ...any)
}

// super is a superblock on a source that is not in use.
type super struct {
	mounts.Superblock
	source int
	path   string
	member string // the signature of a member of something larger, or of a filesystem like it; "" for none
}

func (h *holding) add(i int, src *block.Device) error {
	roots := []sysfs.Dev{src.Identity().Dev()}
	if !src.IsDevice() {
		var err error
		if roots, err = h.table.LoopsOver(src.Path()); err != nil {
			return err
		}
		if len(roots) == 0 {
			return h.read(i, src, src.Path())
		}
	}
	for _, root := range roots {
		above, err := h.table.Above(root)
		if err != nil {
			return err
		}
		for d := range above {
			h.of[d] = i
		}
	}
	for _, root := range roots {
		h.of[root] = i
	}
	h.roots = append(h.roots, roots...)
	return nil
}

// inUse returns the parts that the kernel tells of.
func (h *holding) inUse() ([]Part, error) {
	spread, err := h.table.Spread(h.roots...)
	if err != nil {
		return nil, err
	}
	var parts []Part
	for _, sp := range spread {
		p := Part{Name: sp.Name, Source: h.of[sp.On[0]]}
		if sp.Device != (sysfs.Dev{}) {
			p.Instead = nodeOf(sp.Device)
		}
		for _, d := range sp.Missing {
			p.Missing = append(p.Missing, nodeOf(d))
		}
		parts = append(parts, p)
	}
	return parts, nil
}

// nodeOf is the path of a device, or what else is known of it.
func nodeOf(d sysfs.Dev) string {
	path, err := sysfs.Node(d)
	if err != nil {
		return "device " + d.String() + ", which has no node here"
	}
	return path
}

// readIdle reads what is on the devices that nobody uses. One above a source that cannot be
// read is told, and passed over: a container may lack its node, and a partition that the
// kernel still shows may lie behind the end of its disk.
func (h *holding) readIdle(sources []*block.Device) error {
	idle, err := h.table.Idle(h.roots...)
	if err != nil {
		return err
	}
	for _, d := range idle {
		i := h.of[d]
		if src := sources[i]; src.IsDevice() && src.Identity().Dev() == d {
			if err := h.read(i, src, nodeOf(d)); err != nil {
				return err
			}
			continue
		}
		disk, err := block.Open(nodeOf(d), block.Options{Direct: true})
		if err == nil {
			err = h.read(i, disk, disk.Path())
			disk.Close()
		}
		if err != nil {
			h.note("%s: what is on it may lie on other devices too, which cannot be told: %v", nodeOf(d), err)
		}
	}
	return nil
}

// read reads the superblock on a device, whose node is at path whatever it was opened by.
func (h *holding) read(i int, d *block.Device, path string) error {
	sb, err := mounts.ReadSuperblock(d, d.Size())
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	s := super{Superblock: sb, source: i, path: path}
	if sb.Type == "" {
		if s.member, err = member(d); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	h.supers = append(h.supers, s)
	return nil
}

// member returns the signature of what may lie on several devices, "" for none.
func member(d *block.Device) (string, error) {
	found, err := mounts.Probe(d, d.Size())
	if err != nil {
		return "", err
	}
	for _, f := range found {
		switch f.Name {
		case "linux_raid_member", "zfs_member", "bcachefs", "LVM2_member", "bcache", "isw_raid_member", "ddf_raid_member":
			return f.Name, nil
		}
	}
	return "", nil
}
