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
	"tidemark/linux/sysfs"
)

// refuseOverlap refuses two devices that share a byte: the kernel would write metadata
// over data. It sees through partitions, linear targets of device-mapper (plain LVM) and
// era targets, and loop devices. A device that is stacked on another one is no concern
// here: the lower one is in use.
func refuseOverlap(ctl *dm.Control, data, meta block.Identity) error {
	if data.Dev() == meta.Dev() {
		return refused("data %s and metadata %s are one device", data.Path, meta.Path)
	}
	a, err := spansOf(ctl, data, 0, data.Size)
	if err != nil {
		return fmt.Errorf("dmera: data: %w", err)
	}
	b, err := spansOf(ctl, meta, 0, meta.Size)
	if err != nil {
		return fmt.Errorf("dmera: metadata: %w", err)
	}
	for _, x := range a {
		if slices.ContainsFunc(b, x.overlaps) {
			return refused("data %s and metadata %s overlap: they lie on the same part of %s", data.Path, meta.Path, x.on)
		}
	}
	return nil
}

// span is a part of a disk, or of the file behind a loop device.
type span struct {
	on         string // the same for all spans of one disk or file, and for no others
	start, end int64  // bytes
}

func (a span) overlaps(b span) bool { return a.on == b.on && a.start < b.end && b.start < a.end }

// spansOf returns where the bytes from start to end of a device lie.
func spansOf(ctl *dm.Control, id block.Identity, start, end int64) ([]span, error) {
	start, end = start+id.Start, end+id.Start
	disk := dm.Dev{Major: id.DiskMajor, Minor: id.DiskMinor}
	if sysfs.IsMapped(id.Disk) {
		return mappedSpans(ctl, disk, start, end)
	}
	if _, err := os.Stat(filepath.Join(sysfs.DiskDir(id.Disk), "loop")); err == nil {
		return loopSpan(id.Disk, start, end)
	}
	return []span{{"device " + disk.String(), start, end}}, nil
}

// mappedSpans looks through a device of device-mapper, where its targets only move
// bytes. The kernel allows no cycles among them, so this ends.
func mappedSpans(ctl *dm.Control, dev dm.Dev, start, end int64) ([]span, error) {
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
			all = append(all, span{"device " + dev.String(), from, to})
			continue
		}
		id, err := block.IdentifyDev(below)
		if err != nil {
			return nil, err
		}
		spans, err := spansOf(ctl, id, from-begin+offset, to-begin+offset)
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
		dev, failed := sysfs.ParseDev(words[0])
		return dev, sector * sectorSize, err == nil && failed == nil
	case t.Type == targetType:
		e, err := parseTable(t)
		return e.data, 0, err == nil
	}
	return below, 0, false
}

// loopSpan looks through a loop device. Two of them share a file when its inode is the
// same: the file may have several paths, or none.
func loopSpan(disk string, start, end int64) ([]span, error) {
	f, err := os.Open(sysfs.DevPath(disk))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("%s: LOOP_GET_STATUS64: %w", f.Name(), err)
	}
	file := fmt.Sprintf("inode %d of device %d", info.Inode, info.Device)
	return []span{{file, start + int64(info.Offset), end + int64(info.Offset)}}, nil
}
