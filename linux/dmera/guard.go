package dmera

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/linux/dm"
	"tidemark/linux/mounts"
)

// pair is a data and a metadata device that are held, so that nobody else can
// begin to use them exclusively.
type pair struct {
	data, meta     *block.Device
	dataDev, metaD dm.Dev
}

// claimPair holds two devices for an era device to be made of, when both are block
// devices that nobody uses and that share no byte. Data is only read.
func claimPair(data, meta string) (*pair, error) {
	dataID, err := identify("data", data)
	if err != nil {
		return nil, err
	}
	metaID, err := identify("metadata", meta)
	if err != nil {
		return nil, err
	}
	if err := refuseOverlap(dataID, metaID); err != nil {
		return nil, err
	}
	if err := errors.Join(usable("data", dataID), usable("metadata", metaID)); err != nil {
		return nil, err
	}
	p := &pair{dataDev: numberOf(dataID), metaD: numberOf(metaID)}
	if p.data, err = hold("data", data, block.Options{Exclusive: true}); err != nil {
		return nil, err
	}
	if p.meta, err = hold("metadata", meta, block.Options{Exclusive: true, Direct: true, Write: true}); err != nil {
		return nil, errors.Join(err, p.data.Close())
	}
	return p, nil
}

// Close lets both go; twice is once.
func (p *pair) Close() error {
	var errs []error
	for _, dev := range []**block.Device{&p.data, &p.meta} {
		if *dev != nil {
			errs = append(errs, (*dev).Close())
			*dev = nil
		}
	}
	return errors.Join(errs...)
}

func numberOf(id block.Identity) dm.Dev { return dm.Dev{Major: id.Major, Minor: id.Minor} }

// refused is an error that wraps ErrRefused.
func refused(format string, args ...any) error {
	return fmt.Errorf("dmera: %w: %w", ErrRefused, fmt.Errorf(format, args...))
}

func identify(what, path string) (block.Identity, error) {
	id, err := block.Identify(path)
	if errors.Is(err, block.ErrNotBlockDevice) {
		return id, refused("%s %s: %w; losetup makes one of a file", what, path, block.ErrNotBlockDevice)
	}
	if err != nil {
		return id, fmt.Errorf("dmera: %s: %w", what, err)
	}
	return id, nil
}

// usable refuses what device-mapper cannot take or what is in use.
func usable(what string, id block.Identity) error {
	path := id.Path
	if id.Zoned {
		return refused("%s %s: a zoned device, which dm-era cannot take", what, path)
	}
	ro, err := readNumber(filepath.Join("/sys/dev/block", numberOf(id).String(), "ro"))
	if err != nil {
		return fmt.Errorf("dmera: %s %s: %w", what, path, err)
	}
	if ro != 0 {
		return refused("%s %s: read-only", what, path)
	}
	table, err := mounts.Read()
	if err != nil {
		return fmt.Errorf("dmera: %s %s: %w", what, path, err)
	}
	use, err := table.UseOf(path)
	if err != nil {
		return fmt.Errorf("dmera: %s %s: %w", what, path, err)
	}
	if use.InUse() {
		return refused("%s %s: in use (%s)", what, path, use)
	}
	return nil
}

func hold(what, path string, o block.Options) (*block.Device, error) {
	dev, err := block.Open(path, o)
	if errors.Is(err, unix.EBUSY) {
		return nil, refused("%s %s: in use", what, path)
	}
	if err != nil {
		return nil, fmt.Errorf("dmera: %s: %w", what, err)
	}
	if dev.Size() < sectorSize {
		return nil, errors.Join(refused("%s %s: empty", what, path), dev.Close())
	}
	return dev, nil
}

// refuseOverlap refuses two devices with a byte in common. One that is stacked on
// the other is in use by it already.
func refuseOverlap(data, meta block.Identity) error {
	if numberOf(data) == numberOf(meta) {
		return refused("data %s and metadata %s are one device", data.Path, meta.Path)
	}
	if data.Disk == meta.Disk && data.Start < meta.Start+meta.Size && meta.Start < data.Start+data.Size {
		return refused("data %s and metadata %s overlap on %s", data.Path, meta.Path, data.Disk)
	}
	if data.Disk == meta.Disk {
		return nil
	}
	a, okA := loopSpan(data.Disk)
	b, okB := loopSpan(meta.Disk)
	if okA && okB && a.overlaps(b) {
		return refused("data %s and metadata %s lie on the same part of %s", data.Path, meta.Path, a.file)
	}
	return nil
}

// fileSpan is the part of a file that a loop device shows.
type fileSpan struct {
	file   string
	start  uint64
	length uint64 // bytes; 0: to the end
}

func (a fileSpan) overlaps(b fileSpan) bool {
	return a.file == b.file &&
		(a.length == 0 || b.start < a.start+a.length) && (b.length == 0 || a.start < b.start+b.length)
}

// loopSpan returns what the disk shows when it is a loop device.
func loopSpan(disk string) (fileSpan, bool) {
	dir := filepath.Join("/sys/block", disk, "loop")
	file, err := os.ReadFile(filepath.Join(dir, "backing_file"))
	if err != nil {
		return fileSpan{}, false
	}
	start, err1 := readNumber(filepath.Join(dir, "offset"))
	length, err2 := readNumber(filepath.Join(dir, "sizelimit"))
	return fileSpan{strings.TrimSpace(string(file)), start, length}, err1 == nil && err2 == nil
}
