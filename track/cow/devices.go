package cow

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/zeebo/blake3"

	"tidemark/block"
	"tidemark/linux/dm"
	"tidemark/linux/dmsnap"
	"tidemark/linux/sysfs"
)

// devices are a snapshot and the origin that is written through.
type devices struct {
	path     string // of the store or the snapshot, as given
	snapshot dmsnap.Snapshot
	origin   dmsnap.Origin
}

// find returns the live snapshot whose store, or which itself, is at path, and its origin, which
// must be the source.
func find(ctl *dm.Control, source *block.Device, path string) (devices, error) {
	id, err := block.Identify(path)
	if errors.Is(err, block.ErrNotBlockDevice) {
		return devices{}, fmt.Errorf("track: %s: %w: it is a file", path, ErrNoSnapshot)
	}
	if err != nil {
		return devices{}, fmt.Errorf("track: %w", err)
	}
	snapshots, origins, err := dmsnap.List(ctl)
	if err != nil {
		return devices{}, fmt.Errorf("track: %w", err)
	}
	for _, s := range snapshots {
		if s.Store != id.Dev() && s.Dev() != id.Dev() {
			continue
		}
		found := devices{path: path, snapshot: s}
		if err := found.valid(ctl); err != nil {
			return devices{}, fmt.Errorf("track: %s: %w: %w", s.Path(), ErrUnfit, err)
		}
		if found.origin, err = originOf(s, origins, source); err != nil {
			return devices{}, fmt.Errorf("track: %s: %w", source.Path(), err)
		}
		return found, nil
	}
	return devices{}, fmt.Errorf("track: %s: %w", path, ErrNoSnapshot)
}

// valid says why a snapshot does not tell of all writes.
func (d devices) valid(ctl *dm.Control) error {
	s := d.snapshot
	switch {
	case s.Merge:
		return errors.New("the kernel merges it")
	case !s.Persistent:
		return errors.New("its store is not persistent: nothing on the disk tells of exceptions")
	case s.Features != "":
		return fmt.Errorf("it was made with %q", s.Features)
	case s.InactiveTable:
		return errors.New("another table waits to take the place of its own")
	}
	usage, err := s.Usage(ctl)
	if err != nil {
		return err
	}
	if usage.State != dmsnap.Valid {
		return fmt.Errorf("the kernel says that it is %q", usage.State)
	}
	return nil
}

// originOf returns the one device through which the origin of a snapshot is written, which must
// be the source.
func originOf(s dmsnap.Snapshot, origins []dmsnap.Origin, source *block.Device) (dmsnap.Origin, error) {
	var found *dmsnap.Origin
	for i, o := range origins {
		if o.Below != s.Origin {
			continue
		}
		if found != nil {
			return dmsnap.Origin{}, fmt.Errorf("%w: its origin can be written through %s and %s", ErrUnfit, found.Path(), o.Path())
		}
		found = &origins[i]
	}
	dev := source.Identity().Dev()
	switch {
	case found == nil:
		return dmsnap.Origin{}, fmt.Errorf("%w: no device of the target snapshot-origin is above the origin of %s, so that no write is copied to the store", ErrUnfit, s.Path())
	case !source.IsDevice() || dev != found.Dev():
		return dmsnap.Origin{}, fmt.Errorf("%w %s: that is %s", ErrNotOrigin, s.Path(), found.Path())
	case found.InactiveTable:
		return dmsnap.Origin{}, fmt.Errorf("%w: another table waits to take the place of %s's own", ErrUnfit, found.Path())
	case found.Length != source.Size() || s.Length != source.Size():
		return dmsnap.Origin{}, fmt.Errorf("%w: it has %d bytes, and %s covers %d", ErrUnfit, source.Size(), s.Path(), s.Length)
	}
	return *found, nil
}

// life names one life of a snapshot on its origin.
func (d devices) life() (string, error) {
	boot, err := sysfs.BootID()
	if err != nil {
		return "", fmt.Errorf("track: %w", err)
	}
	parts := []string{boot, fmt.Sprint(d.snapshot.Length, d.snapshot.ChunkSize)}
	for _, dev := range []sysfs.Dev{d.snapshot.Dev(), d.snapshot.Store, d.origin.Dev(), d.snapshot.Origin} {
		id, err := block.IdentifyDev(dev)
		if err != nil {
			return "", fmt.Errorf("track: %w", err)
		}
		if id.DiskSeq == 0 {
			return "", fmt.Errorf("track: %s: %w: this kernel gives disks no sequence numbers (Linux 5.15 does)", d.snapshot.Path(), ErrUnfit)
		}
		parts = append(parts, fmt.Sprintf("%s:%d", dev, id.DiskSeq))
	}
	sum := blake3.Sum256([]byte(strings.Join(parts, " ")))
	return hex.EncodeToString(sum[:8]), nil
}
