package dmera

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"tidemark/block"
	"tidemark/format/era"
	"tidemark/linux/dm"
	"tidemark/linux/sysfs"
)

// Device is an active era device.
type Device struct {
	ctl      *dm.Control
	o        Options
	info     dm.Info
	table    table
	metaPath string
	dataPath string
	meta     *metadata
	claim    *claim // on the metadata snapshot; nil when not prepared
}

// Open opens the era device of that name, or at a path, "/dev/mapper/NAME" or
// "/dev/dm-N". The device is not claimed: it may be mounted. The error wraps
// dm.ErrNotFound when there is no such device, ErrNotEra when it is of another
// kind.
func Open(ctl *dm.Control, nameOrPath string, o Options) (*Device, error) {
	info, err := ctl.Resolve(nameOrPath)
	if errors.Is(err, block.ErrNotBlockDevice) || errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("dmera: %s: %w: %w", nameOrPath, ErrNotEra, err)
	}
	if err != nil {
		return nil, fmt.Errorf("dmera: %w", err)
	}
	d := &Device{ctl: ctl, o: o.withDefaults(), info: info}
	if d.table, err = readTable(ctl, info.Name); err != nil {
		return nil, err
	}
	if d.dataPath, err = sysfs.Node(d.table.data); err != nil {
		return nil, fmt.Errorf("dmera: %s: data device: %w", info.Name, err)
	}
	if d.metaPath, err = sysfs.Node(d.table.meta); err != nil {
		return nil, fmt.Errorf("dmera: %s: metadata device: %w", info.Name, err)
	}
	d.meta, err = openMetadata(d.metaPath)
	if err != nil {
		return nil, fmt.Errorf("dmera: %s: %w", info.Name, err)
	}
	return d, nil
}

// Close lets go of the device, which stays active. A snapshot that is not closed
// stays held, and counts as left by a dead process.
func (d *Device) Close() error {
	return errors.Join(d.release(), d.meta.Close())
}

// Name returns the name of the device, without a folder.
func (d *Device) Name() string { return d.info.Name }

// Path returns where the device's node is.
func (d *Device) Path() string { return d.info.Path() }

// Number returns the number of the device.
func (d *Device) Number() dm.Dev { return d.info.Dev() }

// MetaPath returns a path of the metadata device.
func (d *Device) MetaPath() string { return d.metaPath }

// DataPath returns a path of the data device.
func (d *Device) DataPath() string { return d.dataPath }

// BlockSize returns the unit in which writes are remembered, in bytes.
func (d *Device) BlockSize() int64 { return int64(d.table.blockSectors) * sectorSize }

// Size returns the size of the era device in bytes when it was opened. The last
// block may be partial.
func (d *Device) Size() int64 { return int64(d.table.sectors) * sectorSize }

// Identity reads the identity of the metadata: the zero value when it has none,
// because another program made it.
func (d *Device) Identity() (era.Identity, error) {
	s, err := d.meta.superblock()
	if err != nil {
		return era.Identity{}, fmt.Errorf("dmera: %s: %w", d.Name(), err)
	}
	return s.Identity, nil
}

// Stored reads the era that the metadata was in when the kernel stored it last. Of a suspended device
// that is the one that has ended.
func (d *Device) Stored() (era.Era, error) {
	s, err := d.meta.superblock()
	if err != nil {
		return 0, fmt.Errorf("dmera: %s: %w", d.Name(), err)
	}
	return s.Era, nil
}

// Checkpoint ends the current era. It returns when the new one is in the metadata;
// Status tells its number.
func (d *Device) Checkpoint(ctx context.Context) error { return d.message(ctx, "checkpoint") }

// message sends one of the target's three messages.
func (d *Device) message(ctx context.Context, text string) error {
	if err := d.answering(ctx); err != nil {
		return err
	}
	if _, err := d.ctl.Message(d.Name(), 0, text); err != nil {
		return fmt.Errorf("dmera: %w", err)
	}
	return nil
}

// answering fails unless the kernel would answer: it lets a call wait for as long
// as the device is suspended.
func (d *Device) answering(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	info, err := d.ctl.Info(d.Name())
	if err != nil {
		return fmt.Errorf("dmera: %w", err)
	}
	if info.Dev() != d.info.Dev() {
		return fmt.Errorf("dmera: %s: %w: another device has taken the name", d.Name(), ErrNotEra)
	}
	if info.Suspended || info.SuspendedInternal {
		return fmt.Errorf("dmera: %s: %w", d.Name(), ErrSuspended)
	}
	return nil
}

// table is the one line of an era device's table.
type table struct {
	sectors      uint64
	meta, data   dm.Dev
	blockSectors uint32
}

// readTable reads the active table.
func readTable(ctl *dm.Control, name string) (table, error) {
	targets, _, err := ctl.Table(name)
	if err != nil {
		return table{}, fmt.Errorf("dmera: %w", err)
	}
	if len(targets) != 1 || targets[0].Type != targetType || targets[0].Start != 0 {
		return table{}, fmt.Errorf("dmera: %s: %w: its table has %s", name, ErrNotEra, kinds(targets))
	}
	t, err := parseTable(targets[0])
	if err != nil {
		return table{}, fmt.Errorf("dmera: %s: %w", name, err)
	}
	return t, nil
}

func kinds(targets []dm.Target) string {
	if len(targets) == 0 {
		return "no target"
	}
	var words []string
	for _, t := range targets {
		words = append(words, t.Type)
	}
	return strings.Join(words, ", ")
}

// parseTable reads "META DATA SECTORS", devices as MAJOR:MINOR.
func parseTable(t dm.Target) (table, error) {
	words := strings.Fields(t.Params)
	if len(words) != 3 {
		return table{}, fmt.Errorf("table %q: want three words", t.Params)
	}
	meta, err1 := sysfs.ParseDev(words[0])
	data, err2 := sysfs.ParseDev(words[1])
	sectors, err3 := strconv.ParseUint(words[2], 10, 32)
	if err := errors.Join(err1, err2, err3); err != nil {
		return table{}, fmt.Errorf("table %q: %w", t.Params, err)
	}
	if sectors == 0 || sectors%8 != 0 {
		return table{}, fmt.Errorf("table %q: block size %q", t.Params, words[2])
	}
	return table{sectors: t.Len, meta: meta, data: data, blockSectors: uint32(sectors)}, nil
}

// target is the opposite of parseTable.
func (t table) target() dm.Target {
	return dm.Target{Len: t.sectors, Type: targetType, Params: fmt.Sprintf("%s %s %d", t.meta, t.data, t.blockSectors)}
}
