package snapshot

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"tidemark/linux/dm"
	"tidemark/linux/mounts"
)

// twice are the targets whose tables can be loaded into a second device while the first one is
// in use: they hold no state of their own.
var twice = []string{"linear", "striped", "crypt", "delay", "flakey", "zero", "error"}

// origin judges a device.
func origin(ctl *dm.Control, path string) (*Volume, error) {
	info, err := ctl.Resolve(path)
	if errors.Is(err, dm.ErrNotFound) {
		return nil, fmt.Errorf("snapshot: %s: %w: its table cannot be changed while it is in use", path, ErrPlain)
	}
	if err != nil {
		return nil, err
	}
	table, info, err := ctl.Table(info.Name)
	if err != nil {
		return nil, err
	}
	v := &Volume{Name: info.Name, UUID: info.UUID, Dev: info.Dev()}
	unfit := func(format string, args ...any) error {
		return fmt.Errorf("snapshot: %s: %w: %s", path, ErrUnfit, fmt.Sprintf(format, args...))
	}
	switch {
	case strings.HasPrefix(info.UUID, uuid("")):
		return nil, unfit("it belongs to a snapshot")
	case len(table) == 0:
		return nil, unfit("it has no table")
	case info.ReadOnly:
		return nil, unfit("it is read-only, and does not change")
	case info.Suspended:
		return nil, unfit("it is suspended; \"dmsetup resume %s\" lets it go on", info.Name)
	case info.InactiveTable:
		return nil, unfit("another table waits for it; \"dmsetup clear %s\" drops that", info.Name)
	}
	v.Size = int64(table[len(table)-1].Start+table[len(table)-1].Len) * dm.SectorSize
	v.share = choice{v.Size / defaultShare, "a tenth of it"}
	if part, err := partOf(v); part != "" || err != nil {
		return nil, errors.Join(err, unfit("it is a %s: what is made of it would be found a second time in the image; take snapshots of that", part))
	}
	_, v.Era = eraTable(table)
	if ours, err := v.snapshotted(ctl); ours || err != nil || v.Era {
		return v, err
	}
	for _, t := range table {
		if t.Type == "multipath" {
			return nil, unfit("the kernel lets no table of another kind take the place of its own (DM_TARGET_IMMUTABLE): take one of a partition of it (kpartx), or of what lies on it")
		}
		if !slices.Contains(twice, t.Type) {
			return nil, unfit("its target %q cannot be loaded twice", t.Type)
		}
		if w := strings.Fields(t.Params); t.Type == "crypt" && len(w) > 1 && strings.HasPrefix(w[1], ":") {
			return nil, unfit("its key is in a keyring, where it is not found a second time: \"cryptsetup refresh --disable-keyring %s\" puts it into the table", info.Name)
		}
	}
	return v, nil
}

// partOf returns what a volume is a part of that is found, on all devices of the machine, by what its
// parts hold: LVM, for one, changes no group any more of which it finds a part twice.
func partOf(v *Volume) (string, error) {
	d, err := v.open()
	if err != nil {
		return "", err
	}
	defer d.Close()
	found, err := mounts.Probe(d, d.Size())
	for _, f := range found {
		if slices.Contains([]string{"LVM2_member", "linux_raid_member", "zfs_member"}, f.Name) {
			return f.String(), err
		}
	}
	return "", err
}

// complete refuses a volume that is one of several that a mounted filesystem lies on. A Btrfs looks for
// its devices by what they hold, and would take the images for them; an ext4 with its journal elsewhere
// cannot be frozen while the journal stands still.
func (s *Snapshot) complete(v *Volume) error {
	table, err := mounts.Read()
	if err != nil {
		return err
	}
	all, err := table.On(v.Dev)
	for _, f := range all {
		if len(f.Members) > 1 && slices.Contains(f.Members, v.Dev) {
			return fmt.Errorf("%w: %s lies on %d devices: unmount it, or use \"tidemark mirror\"", ErrUnfit, f, len(f.Members))
		}
	}
	return err
}

// snapshotted reports whether the volume has the table that it has while there is a snapshot of
// ours.
func (v *Volume) snapshotted(ctl *dm.Control) (bool, error) {
	table, _, err := ctl.Table(v.Name)
	if _, era := eraTable(table); era {
		return v.inserted(ctl, table)
	}
	if err != nil || len(table) != 1 || table[0].Type != "snapshot-origin" {
		return false, err
	}
	real, ours, err := own(ctl, v.real())
	return ours && strings.TrimSpace(table[0].Params) == real.Dev().String(), err
}
