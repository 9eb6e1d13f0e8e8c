package pairs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"tidemark/block"
	"tidemark/linux/blkid"
	"tidemark/linux/mounts"
	"tidemark/linux/sysfs"
)

// A part is something that lies on devices of which a run would not copy all.
type part struct {
	name    string // "btrfs on /srv (/dev/vdb1)"
	source  int    // a source that holds some of it
	instead string // the device that is all of it; "" where there is none
	missing []string
	unknown string // what else is missing, in words
}

func (p part) String() string {
	var lacks []string
	if len(p.missing) > 0 {
		lacks = append(lacks, strings.Join(p.missing, ", "))
	}
	if p.unknown != "" {
		lacks = append(lacks, p.unknown)
	}
	text := fmt.Sprintf("%s needs %s as well", p.name, strings.Join(lacks, ", "))
	if p.instead != "" {
		text += fmt.Sprintf(" (name %s instead: it is all of it)", p.instead)
	}
	return text
}

// whole sees to it that all devices of what lies on the sources are copied: it adds the
// missing ones, or refuses, or says that a part is copied, as the options want it.
func (s *session) whole(ctx context.Context, pairs []Pair, sources []*source) ([]Pair, []*source, error) {
	for {
		parts, err := s.parts(ctx, sources)
		if err != nil || len(parts) == 0 {
			return pairs, sources, err
		}
		switch {
		case s.o.ForcePart:
			for _, p := range parts {
				s.o.note("%s: WARNING: copying a part alone: %s", sources[p.source].Path(), p)
			}
			return pairs, sources, nil
		case !s.o.Whole:
			return nil, nil, refusePart(parts, sources)
		}
		before := len(sources)
		for _, p := range parts {
			if pairs, sources, err = s.add(ctx, p, pairs, sources); err != nil {
				return nil, nil, err
			}
		}
		if len(sources) == before {
			return nil, nil, refusePart(parts, sources)
		}
	}
}

func refusePart(parts []part, sources []*source) error {
	return fmt.Errorf("source: %s: %w: %s", sources[parts[0].source].Path(), ErrPart, describeParts(parts))
}

func describeParts(parts []part) string {
	var texts []string
	for _, p := range parts {
		texts = append(texts, p.String())
	}
	return strings.Join(texts, "; ")
}

// add makes pairs of what a part is missing.
func (s *session) add(ctx context.Context, p part, pairs []Pair, sources []*source) ([]Pair, []*source, error) {
	if p.unknown != "" {
		return nil, nil, refusePart([]part{p}, sources)
	}
	for _, device := range p.missing {
		if slices.ContainsFunc(sources, func(o *source) bool { return o.Path() == device }) {
			continue // another part misses it as well
		}
		src, err := s.source(ctx, device)
		if err != nil {
			return nil, nil, err
		}
		target, err := beside(pairs[p.source].Target, src)
		if err != nil {
			return nil, nil, err
		}
		s.o.note("%s is copied too, to %s: %s lies on it", device, target, p.name)
		pairs, sources = append(pairs, Pair{Source: device, Target: target}), append(sources, src)
	}
	return pairs, sources, nil
}

// beside names the image of a device beside that of another: data-vdc1.img beside data.img,
// or what the mirror of that device beside it is called already, whatever the device is
// called now.
func beside(target string, src *source) (string, error) {
	_, tagged := blkid.ParseTag(target)
	if info, err := os.Stat(target); tagged || err == nil && info.Mode().Type() == os.ModeDevice {
		return "", fmt.Errorf("target: %s: %w: no device can be named beside a device: name the target of %s with --pair", target, ErrRefused, src.Path())
	}
	end := filepath.Ext(target)
	begin := strings.TrimSuffix(target, end) + "-"
	entries, err := os.ReadDir(filepath.Dir(target))
	if err != nil {
		return "", fmt.Errorf("target: %w", err)
	}
	for _, e := range entries {
		image, ok := strings.CutSuffix(filepath.Join(filepath.Dir(target), e.Name()), folderEnd)
		if !ok || !strings.HasPrefix(image, filepath.Clean(begin)) || !strings.HasSuffix(image, end) {
			continue
		}
		if st, err := readState(image + folderEnd); err == nil && sameOrigin(st.Source, src.origin()) {
			return image, nil
		}
	}
	return begin + filepath.Base(src.Path()) + end, nil
}

// parts finds what lies on the sources and on other devices too. The kernel tells of what is
// in use, superblocks of the rest.
func (s *session) parts(ctx context.Context, sources []*source) ([]part, error) {
	held, parts, err := hold(sources)
	if err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	if err := held.readIdle(sources, s.o); err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	idle, err := held.idleParts(ctx, s.o)
	if err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	return append(parts, idle...), nil
}

// stillWhole says whether a device was added to what lies on the sources while they were
// copied: the copies lack what is on that.
func (s *session) stillWhole() error {
	var sources []*source
	for _, e := range s.ends {
		sources = append(sources, e.source)
	}
	_, parts, err := hold(sources)
	switch {
	case err != nil:
		return fmt.Errorf("source: whether a device was added meanwhile cannot be told: %w", err)
	case len(parts) > 0 && !s.o.ForcePart:
		return fmt.Errorf("a device was added while it was copied: %w", refusePart(parts, sources))
	}
	return nil
}

// hold looks at what is in use on the sources, and returns what of it is in parts.
func hold(sources []*source) (held holding, parts []part, err error) {
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
}

// super is a superblock on a source that is not in use.
type super struct {
	mounts.Superblock
	source int
	path   string
	member string // the signature of a member of something larger, or of a filesystem like it; "" for none
}

func (h *holding) add(i int, src *source) error {
	roots := []sysfs.Dev{src.Identity().Dev()}
	if !src.IsDevice() {
		var err error
		if roots, err = h.table.LoopsOver(src.Path()); err != nil {
			return err
		}
		if len(roots) == 0 {
			return h.read(i, src.Device, src.Path())
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
func (h *holding) inUse() ([]part, error) {
	spread, err := h.table.Spread(h.roots...)
	if err != nil {
		return nil, err
	}
	var parts []part
	for _, sp := range spread {
		p := part{name: sp.Name, source: h.of[sp.On[0]]}
		if sp.Device != (sysfs.Dev{}) {
			p.instead = nodeOf(sp.Device)
		}
		for _, d := range sp.Missing {
			p.missing = append(p.missing, nodeOf(d))
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
func (h *holding) readIdle(sources []*source, o Options) error {
	idle, err := h.table.Idle(h.roots...)
	if err != nil {
		return err
	}
	for _, d := range idle {
		i := h.of[d]
		if src := sources[i]; src.IsDevice() && src.Identity().Dev() == d {
			if err := h.read(i, src.Device, nodeOf(d)); err != nil {
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
			o.note("%s: what is on it may lie on other devices too, which cannot be told: %v", nodeOf(d), err)
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
	found, err := mounts.Probe(aligned{d}, d.Size())
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

// aligned reads into buffers that are fit for direct I/O.
type aligned struct{ *block.Device }

func (a aligned) ReadAt(p []byte, off int64) (int, error) {
	b := block.AlignedBuffer(len(p))
	n, err := a.Device.ReadAt(b, off)
	return copy(p, b[:n]), err
}
