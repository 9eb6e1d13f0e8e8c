package block

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// ErrNoCounters says that the kernel does not count what is read from and written to
// a device.
var ErrNoCounters = errors.New("the kernel does not count what is written to it")

// Counters are what the kernel has counted on a device since it appeared
// (Documentation/block/stat.rst, fields 3, 7 and 14), in sectors of 512 bytes. They
// grow before the program hears that its request is done.
type Counters struct {
	Read      uint64
	Written   uint64
	Discarded uint64 // 0 before Linux 4.18
}

// ReadCounters returns the counters of the device at path, and proves that it has any
// by reading from it: queue/iostats switches them off for most drivers, some count
// all the same, and some never do. Without proof the error wraps ErrNoCounters. The
// counters of a partition leave out what is written to its place through the whole
// disk.
func ReadCounters(path string) (Counters, error) {
	id, err := Identify(path)
	if err != nil {
		return Counters{}, err
	}
	before, err := loadCounters(id)
	if err != nil {
		return Counters{}, err
	}
	if err := readPastCache(path); err != nil {
		return Counters{}, fmt.Errorf("counters: %s: %w, as far as can be told: %w", path, ErrNoCounters, err)
	}
	after, err := loadCounters(id)
	if err == nil && after.Read == before.Read {
		err = fmt.Errorf("counters: %s: %w", path, ErrNoCounters)
	}
	return after, err
}

func loadCounters(id Identity) (Counters, error) {
	path := fmt.Sprintf("/sys/dev/block/%d:%d/stat", id.Major, id.Minor)
	b, err := os.ReadFile(path)
	if err != nil {
		return Counters{}, fmt.Errorf("counters: %w", err)
	}
	c, err := parseCounters(string(b))
	if err != nil {
		err = fmt.Errorf("counters: %s: %w", path, err)
	}
	return c, err
}

func parseCounters(text string) (Counters, error) {
	fields := strings.Fields(text)
	if len(fields) < 11 {
		return Counters{}, fmt.Errorf("%d fields, want 11 or more", len(fields))
	}
	n := make([]uint64, max(len(fields), 15))
	for i, f := range fields {
		v, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			return Counters{}, fmt.Errorf("field %d: %w", i+1, err)
		}
		n[i] = v
	}
	return Counters{Read: n[2], Written: n[6], Discarded: n[13]}, nil
}

// readPastCache reads one block of a device from its disk.
func readPastCache(path string) error {
	d, err := Open(path, Options{Direct: true})
	if err != nil {
		return err
	}
	defer d.Close()
	_, err = d.ReadAt(AlignedBuffer(4096), 0)
	return err
}
