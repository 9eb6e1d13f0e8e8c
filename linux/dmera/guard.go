package dmera

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/linux/dm"
	"tidemark/linux/mounts"
	"tidemark/linux/sysfs"
)

// pair is a data and a metadata device, opened exclusively: no other program can mount
// them or open them exclusively.
type pair struct {
	data, meta     *block.Device
	dataDev, metaD dm.Dev
}

// claimPair opens the two devices of a new era device. It refuses devices that are not
// block devices, are in use, or share a byte. Data is only read.
func claimPair(ctl *dm.Control, data, meta string) (*pair, error) {
	dataID, err := identify("data", data)
	if err != nil {
		return nil, err
	}
	metaID, err := identify("metadata", meta)
	if err != nil {
		return nil, err
	}
	if err := refuseOverlap(ctl, dataID, metaID); err != nil {
		return nil, err
	}
	if err := errors.Join(usable("data", dataID), usable("metadata", metaID)); err != nil {
		return nil, err
	}
	p := &pair{dataDev: dataID.Dev(), metaD: metaID.Dev()}
	if p.data, err = hold("data", dataID, block.Options{Exclusive: true}); err != nil {
		return nil, err
	}
	if p.meta, err = hold("metadata", metaID, block.Options{Exclusive: true, Direct: true, Write: true}); err != nil {
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
	ro, err := sysfs.Uint(filepath.Join(id.Dev().Dir(), "ro"))
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

// hold opens the device with that identity.
func hold(what string, id block.Identity, o block.Options) (*block.Device, error) {
	path := id.Path
	dev, err := block.Open(path, o)
	if errors.Is(err, unix.EBUSY) {
		return nil, refused("%s %s: in use", what, path)
	}
	if err != nil {
		return nil, fmt.Errorf("dmera: %s: %w", what, err)
	}
	if opened := dev.Identity(); opened.Dev() != id.Dev() || opened.DiskSeq != id.DiskSeq {
		return nil, errors.Join(refused("%s %s: another device has taken the name", what, path), dev.Close())
	}
	if dev.Size() < sectorSize {
		return nil, errors.Join(refused("%s %s: empty", what, path), dev.Close())
	}
	return dev, nil
}
