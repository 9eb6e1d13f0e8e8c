package pairs

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"tidemark/block"
	"tidemark/format/state"
	"tidemark/linux/mounts"
	"tidemark/linux/sysfs"
)

// source is an open source.
type source struct {
	*block.Device
	untracked string // why its changes are not tracked, "" where they are
}

// openSource opens a source for reading, past the page cache.
func openSource(path string) (*source, error) {
	if err := CheckPath(path); err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	d, err := block.Open(path, block.Options{Direct: true})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSource, err)
	}
	if d.IsDevice() && d.Size() == 0 {
		return nil, errors.Join(fmt.Errorf("%w: %s: %w", ErrSource, path, ErrNoSize), d.Close())
	}
	return &source{Device: d}, nil
}

// overFile says that a file is not tracked, and names the loop devices over it, which are.
func overFile(path string) string {
	text := "a file cannot be: name the device that is in use, and run as root"
	table, err := mounts.Read()
	if err != nil {
		return text
	}
	over, err := table.LoopsOver(path)
	for _, d := range over {
		if node, nerr := sysfs.Node(d); err == nil && nerr == nil {
			return fmt.Sprintf("a file cannot be: name the device over it, %s, and run as root", node)
		}
	}
	return text
}

// origin is what a mirror remembers of its source.
func (s *source) origin() state.Source {
	if !s.IsDevice() {
		return state.Source{Path: absolute(s.Path())}
	}
	return state.Source{Path: s.Path(), Stable: stableName(s.Identity()), Start: s.Identity().Start}
}

// sameOrigin compares what names a medium best: what it is, or else its path.
func sameOrigin(a, b state.Source) bool {
	if a.Start != b.Start {
		return false
	}
	if a.Stable != "" && b.Stable != "" && a.Stable == b.Stable {
		return true
	}
	return a.Path == b.Path && (a.Stable == "" || b.Stable == "" || volatile(a.Stable) || volatile(b.Stable))
}

func describe(s state.Source) string {
	if s.Stable == "" {
		return s.Path
	}
	return fmt.Sprintf("%s (%s)", s.Path, s.Stable)
}

// absolute is path without symbolic links, as far as it exists.
func absolute(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	} else if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		path = filepath.Join(dir, filepath.Base(path))
	}
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// volatilePrefix begins the name of a device that the kernel tells nothing of.
const volatilePrefix = "disk="

// volatile reports whether a stable name is good for this boot only.
func volatile(name string) bool { return strings.HasPrefix(name, volatilePrefix) }

// stableName names a device by what it is, whatever its name is today: by the
// id, serial number or backing file that the kernel shows. A device that has
// nothing of the kind (zram) is named after its place in this boot.
func stableName(id block.Identity) string {
	dir := sysfs.DiskDir(id.Disk)
	name := ""
	for _, file := range []string{"dm/uuid", "loop/backing_file", "wwid", "device/wwid", "serial", "device/serial"} {
		// The file behind a loop device may have been unlinked since.
		text, err := sysfs.Text(filepath.Join(dir, file))
		if text = strings.TrimSuffix(text, " (deleted)"); err == nil && text != "" {
			name = file + "=" + text
			break
		}
	}
	if name == "" {
		boot, _ := sysfs.BootID() // no boot id: the sequence number has to do
		name = fmt.Sprintf(volatilePrefix+"%s seq=%d boot=%s", id.Disk, id.DiskSeq, boot)
	}
	if offset, err := sysfs.Text(filepath.Join(dir, "loop", "offset")); err == nil {
		name += " offset=" + offset
	}
	if id.IsPartition() {
		name += fmt.Sprintf(" start=%d", id.Start)
	}
	return name
}
