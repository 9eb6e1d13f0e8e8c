package pairs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"tidemark/block"
	"tidemark/format/sidecar"
)

// source is an open source.
type source struct {
	*block.Device
	id block.Identity // of a device
}

// openSource opens a source for reading, past the page cache.
func openSource(path string) (*source, error) {
	d, err := block.Open(path, block.Options{Direct: true})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSource, err)
	}
	src := &source{Device: d}
	if !d.IsDevice() {
		return src, nil
	}
	if src.id, err = block.Identify(path); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrSource, err), d.Close())
	}
	return src, nil
}

// origin is what a mirror remembers of its source.
func (s *source) origin() sidecar.Source {
	if !s.IsDevice() {
		return sidecar.Source{Path: absolute(s.Path())}
	}
	return sidecar.Source{Path: s.Path(), Stable: stableName(s.id), Start: s.id.Start}
}

// sameOrigin compares what names a medium best: what it is, or else its path.
func sameOrigin(a, b sidecar.Source) bool {
	if a.Start != b.Start {
		return false
	}
	if a.Stable != "" && b.Stable != "" && a.Stable == b.Stable {
		return true
	}
	return a.Path == b.Path && (a.Stable == "" || b.Stable == "" || volatile(a.Stable) || volatile(b.Stable))
}

func describe(s sidecar.Source) string {
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
	dir := filepath.Join("/sys/block", id.Disk)
	name := ""
	for _, file := range []string{"dm/uuid", "loop/backing_file", "wwid", "device/wwid", "serial", "device/serial"} {
		b, err := os.ReadFile(filepath.Join(dir, file))
		// The file behind a loop device may have been unlinked since.
		if text := strings.TrimSuffix(strings.TrimSpace(string(b)), " (deleted)"); err == nil && text != "" {
			name = file + "=" + text
			break
		}
	}
	if name == "" {
		boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // no boot id: the sequence number has to do
		name = fmt.Sprintf(volatilePrefix+"%s seq=%d boot=%s", id.Disk, id.DiskSeq, strings.TrimSpace(string(boot)))
	}
	if offset, err := os.ReadFile(filepath.Join(dir, "loop", "offset")); err == nil {
		name += " offset=" + strings.TrimSpace(string(offset))
	}
	if id.IsPartition() {
		name += fmt.Sprintf(" start=%d", id.Start)
	}
	return name
}
