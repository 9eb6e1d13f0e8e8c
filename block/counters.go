package block

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"tidemark/linux/sysfs"
)

// ErrNoCounters says that the kernel does not count what is read from and written to
// a device.
var ErrNoCounters = errors.New("the kernel does not count what is written to it")

// Counters are what the kernel has counted on a device since it appeared, in sectors of
// 512 bytes. They grow before the program hears that its request is done.
type Counters struct {
	Read      uint64
	Written   uint64
	Discarded uint64 // 0 before Linux 4.18
}

// Counters returns the counters of a block device, and proves that it has any by reading
// from it: queue/iostats switches them off for most drivers, some count all the same, and
// some never do. Without proof the error wraps ErrNoCounters. The counters of a partition
// leave out what is written to its place through the whole disk.
func (d *Device) Counters() (Counters, error) {
	before, err := sysfs.Stat(d.id.Dev().Dir())
	if err != nil {
		return Counters{}, fmt.Errorf("counters: %w", err)
	}
	if err := d.readPastCache(); err != nil {
		return Counters{}, fmt.Errorf("counters: %s: %w, as far as can be told: %w", d.Path(), ErrNoCounters, err)
	}
	after, err := sysfs.Stat(d.id.Dev().Dir())
	if err != nil {
		return Counters{}, fmt.Errorf("counters: %w", err)
	}
	if after.SectorsRead() == before.SectorsRead() {
		return Counters{}, fmt.Errorf("counters: %s: %w", d.Path(), ErrNoCounters)
	}
	return Counters{Read: after.SectorsRead(), Written: after.SectorsWritten(), Discarded: after.SectorsDiscarded()}, nil
}

// readPastCache reads the first sector of a device from its disk.
func (d *Device) readPastCache() error {
	f := d.f
	if !d.direct {
		var err error
		if f, err = d.openDirect(unix.O_RDONLY); err != nil {
			return err
		}
		defer f.Close()
	}
	_, err := f.ReadAt(AlignedBuffer(d.sector), 0)
	return err
}
