// Package origin opens what is copied, and says what it is whatever its name.
//
// For most uses, call [Open], and [Same] with what is remembered of it and [Of] what it is.
//
// A device is named after what the kernel shows of it: an id, a serial number, the file
// behind it. One that has nothing of the kind is known for the time of one boot only
// ([Volatile]). Functions may be called by several goroutines at once.
package origin

import (
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strings"

	"tidemark/block"
	"tidemark/format/state"
	"tidemark/linux/sysfs"
	"tidemark/transfer/names"
)

var (
	// ErrSource says that a source cannot be opened.
	ErrSource = errors.New("source")
	// ErrNoSize says that a device has no content for now, which is no reason to take it
	// for one that has shrunk.
	ErrNoSize = errors.New("the device has no size (detached, no medium?)")
)

// Open opens a source for reading, past the page cache. The error wraps ErrSource, or
// names.ErrNotAPath.
func Open(path string) (*block.Device, error) {
	if err := names.Check(path); err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	d, err := block.Open(path, block.Options{Direct: true})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSource, err)
	}
	if d.IsDevice() && d.Size() == 0 {
		return nil, errors.Join(fmt.Errorf("%w: %s: %w", ErrSource, path, ErrNoSize), d.Close())
	}
	return d, nil
}

// Of is what a mirror remembers of the device at path, with that identity, or of the image,
// when id is zero.
func Of(path string, id block.Identity) state.Source {
	if id == (block.Identity{}) {
		return state.Source{Path: names.Absolute(path)}
	}
	return state.Source{Path: path, Stable: StableName(id), Start: id.Start}
}

// OfDevice is Of what is open.
func OfDevice(d *block.Device) state.Source { return Of(d.Path(), d.Identity()) }

// Same compares what names a medium best: what it is, or else its path.
func Same(a, b state.Source) bool {
	if a.Start != b.Start {
		return false
	}
	if a.Stable != "" && b.Stable != "" && a.Stable == b.Stable {
		return true
	}
	return a.Path == b.Path && (a.Stable == "" || b.Stable == "" || Volatile(a.Stable) || Volatile(b.Stable))
}

// Devices yields the block devices of this machine, by path, that can be told what they are.
func Devices() iter.Seq2[string, block.Identity] {
	return func(yield func(string, block.Identity) bool) {
		found, _ := os.ReadDir("/sys/class/block") // without any there is none, and that is told
		for _, n := range found {
			path := sysfs.DevPath(n.Name())
			if id, err := block.Identify(path); err == nil && !yield(path, id) {
				return
			}
		}
	}
}

// Describe names a source for people.
func Describe(s state.Source) string {
	if s.Stable == "" {
		return s.Path
	}
	return fmt.Sprintf("%s (%s)", s.Path, s.Stable)
}

// volatilePrefix begins the name of a device that the kernel tells nothing of.
const volatilePrefix = "disk="

// Volatile reports whether a stable name is good for this boot only.
func Volatile(name string) bool { return strings.HasPrefix(name, volatilePrefix) }

// StableName names a device by what it is, whatever its name is today: by the
// id, serial number or backing file that the kernel shows. A device that has
// nothing of the kind (zram) is named after its place in this boot.
func StableName(id block.Identity) string {
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

// LastingName is the stable name of the device at path for as long as that outlives a
// reboot, "" where there is none.
func LastingName(path string) string {
	id, err := block.Identify(path)
	if err != nil {
		return ""
	}
	if name := StableName(id); !Volatile(name) {
		return name
	}
	return ""
}
