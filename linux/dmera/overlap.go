package dmera

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/linux/dm"
)

// refuseOverlap refuses two devices with a byte in common, as far as their layers can
// be seen through: partitions, device-mapper's linear targets (all of plain LVM) and
// era targets, and loop devices. One that is stacked on the other is in use by it
// already.
func refuseOverlap(ctl *dm.Control, data, meta block.Identity) error {
	if numberOf(data) == numberOf(meta) {
		return refused("data %s and metadata %s are one device", data.Path, meta.Path)
	}
	a, err := spansOf(ctl, data, 0, data.Size, 0)
	if err != nil {
		return fmt.Errorf("dmera: data: %w", err)
	}
	b, err := spansOf(ctl, meta, 0, meta.Size, 0)
	if err != nil {
		return fmt.Errorf("dmera: metadata: %w", err)
	}
	for _, x := range a {
		if slices.ContainsFunc(b, x.overlaps) {
			return refused("data %s and metadata %s overlap: they lie on the same part of %s", data.Path, meta.Path, x.name)
		}
	}
	return nil
}

// span is where a part of a device lies.
type span struct {
	on         string // of a disk or a file, what no other one has
	name       string // for people
	start, end int64  // bytes
}

func (a span) overlaps(b span) bool { return a.on == b.on && a.start < b.end && b.start < a.end }

// deepest is how many devices may be stacked; the kernel has fewer.
const deepest = 32

// spansOf returns where the bytes from start to end of a device lie.
func spansOf(ctl *dm.Control, id block.Identity, start, end int64, depth int) ([]span, error) {
	if depth > deepest {
		return nil, fmt.Errorf("%s: more than %d devices are stacked", id.Path, deepest)
	}
	start, end = start+id.Start, end+id.Start
	disk := dm.Dev{Major: id.DiskMajor, Minor: id.DiskMinor}
	if _, err := os.Stat(filepath.Join("/sys/block", id.Disk, "dm")); err == nil {
		return mappedSpans(ctl, disk, start, end, depth)
	}
	if s, ok := loopSpan(id.Disk, start, end); ok {
		return []span{s}, nil
	}
	return []span{{"device " + disk.String(), id.Disk, start, end}}, nil
}

// mappedSpans looks through a device of device-mapper, where its targets only move
// what is below.
func mappedSpans(ctl *dm.Control, dev dm.Dev, start, end int64, depth int) ([]span, error) {
	info, err := ctl.Find(dev.Major, dev.Minor)
	if err != nil {
		return nil, err
	}
	targets, _, err := ctl.Table(info.Name)
	if err != nil {
		return nil, err
	}
	var all []span
	for _, t := range targets {
		begin := int64(t.Start) * sectorSize
		from, to := max(start, begin), min(end, begin+int64(t.Len)*sectorSize)
		if from >= to {
			continue
		}
		below, offset, ok := movedTo(t)
		if !ok {
			all = append(all, span{"device " + dev.String(), info.Name, from, to})
			continue
		}
		path, err := nodeOf(below)
		if err != nil {
			return nil, err
		}
		id, err := block.Identify(path)
		if err != nil {
			return nil, err
		}
		spans, err := spansOf(ctl, id, from-begin+offset, to-begin+offset, depth+1)
		if err != nil {
			return nil, err
		}
		all = append(all, spans...)
	}
	return all, nil
}

// movedTo returns the device below a target and at which byte of it the target begins,
// where each byte of the target is a byte of that device.
func movedTo(t dm.Target) (below dm.Dev, offset int64, ok bool) {
	words := strings.Fields(t.Params)
	switch {
	case t.Type == "linear" && len(words) == 2: // DEV SECTOR
		sector, err := strconv.ParseInt(words[1], 10, 64)
		dev, failed := parseDev(words[0])
		return dev, sector * sectorSize, err == nil && failed == nil
	case t.Type == targetType && len(words) == 3:
		e, err := parseTable(t)
		return e.data, 0, err == nil
	}
	return below, 0, false
}

// loopSpan returns what the disk shows when it is a loop device. A file is told by its
// inode: it may have several paths, or none.
func loopSpan(disk string, start, end int64) (span, bool) {
	dir := filepath.Join("/sys/block", disk, "loop")
	file, err := os.ReadFile(filepath.Join(dir, "backing_file"))
	if err != nil {
		return span{}, false
	}
	offset, err := readNumber(filepath.Join(dir, "offset"))
	if err != nil {
		return span{}, false
	}
	name := strings.TrimSuffix(string(file), "\n")
	s := span{"file " + name, name, start + int64(offset), end + int64(offset)}
	if info, err := loopStatus(disk); err == nil {
		s.on = fmt.Sprintf("inode %d:%d", info.Device, info.Inode)
	}
	return s, true
}

// loopStatus asks the kernel which file is behind a loop device.
func loopStatus(disk string) (*unix.LoopInfo64, error) {
	f, err := os.Open(filepath.Join("/dev", disk))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return unix.IoctlLoopGetStatus64(int(f.Fd()))
}
