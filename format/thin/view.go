package thin

import (
	"fmt"

	"tidemark/format/pdata"
)

// View is one consistent state of the metadata.
type View struct {
	dev   pdata.Device
	super Superblock
	at    Addr // of the held clone, 0 for the live state
}

// Superblock returns the fields that hold for this view. Those of the space maps are of the
// live state.
func (v *View) Superblock() Superblock { return v.super }

// Recheck reads the superblock again and fails with ErrNoSnapshot when the snapshot that this view
// shows is no longer held. Call it after the last use of a snapshot of a pool in use: its
// answers count only when Recheck succeeds.
func (v *View) Recheck() error {
	if v.at == 0 {
		return nil
	}
	m, err := Open(v.dev.R, int64(v.dev.Blocks)*pdata.BlockSize)
	if err != nil {
		return err
	}
	now, err := m.SnapshotAt(v.at)
	if err != nil || m.super.Snapshot != v.at || now.super.Mappings != v.super.Mappings || now.super.Details != v.super.Details {
		return fmt.Errorf("thin: metadata snapshot at byte %d: it was released while it was read: %w", v.at.Offset(), ErrNoSnapshot)
	}
	return nil
}

// Device is one thin device of a pool.
type Device struct {
	ID          uint32 `json:"dev_id"`
	Mapped      uint64 `json:"mapped_blocks"` // as the details say
	Transaction uint64 `json:"transaction"`
	Created     uint32 `json:"creation_time"`
	Snapped     uint32 `json:"snap_time"`
	Root        Addr   `json:"root"` // of its mappings
}

// Devices returns the devices by their numbers. It fails at the first fault, also when the
// details and the mapping tree do not have the same devices.
func (v *View) Devices() ([]Device, error) {
	var list []Device
	t := pdata.Tree{Dev: &v.dev, ValueSize: detailsSize}
	t.Leaf = func(n pdata.TreeNode, i, j int) error {
		for ; i < j; i++ {
			if n.Key(i) >= maxDevices {
				return ours.Damage(Addr(le.Uint64(n[8:])), "device details", "no device can have the number %d", n.Key(i))
			}
			b := n.Value(i)
			list = append(list, Device{
				ID: uint32(n.Key(i)), Mapped: le.Uint64(b), Transaction: le.Uint64(b[8:]),
				Created: le.Uint32(b[16:]), Snapped: le.Uint32(b[20:]),
			})
		}
		return nil
	}
	if err := t.Walk(v.super.Details, pdata.AllKeys()); err != nil {
		return nil, err
	}
	next := 0
	err := v.roots(func(id uint32, root Addr) error {
		if next == len(list) || list[next].ID != id {
			return ours.Damage(v.super.Mappings, "mapping tree", "device %d has no details, or others have no mappings", id)
		}
		list[next].Root = root
		next++
		return nil
	})
	if err == nil && next < len(list) {
		err = ours.Damage(v.super.Details, "device details", "device %d has no mappings", list[next].ID)
	}
	return list, err
}

// maxDevices is behind the highest number of a device (MAX_DEV_ID).
const maxDevices = 1 << 24

// roots calls each for every device of the mapping tree.
func (v *View) roots(each func(id uint32, root Addr) error) error {
	t := pdata.Tree{Dev: &v.dev, ValueSize: pdata.ChildWidth}
	t.Leaf = func(n pdata.TreeNode, i, j int) error {
		for ; i < j; i++ {
			if n.Key(i) >= maxDevices {
				return ours.Damage(Addr(le.Uint64(n[8:])), "mapping tree", "no device can have the number %d", n.Key(i))
			}
			if err := each(uint32(n.Key(i)), Addr(n.Value64(i))); err != nil {
				return err
			}
		}
		return nil
	}
	return t.Walk(v.super.Mappings, pdata.AllKeys())
}

// Device returns the device with a number. The error wraps ErrNoDevice.
func (v *View) Device(id uint32) (Device, error) {
	list, err := v.Devices()
	if err != nil {
		return Device{}, err
	}
	for _, d := range list {
		if d.ID == id {
			return d, nil
		}
	}
	return Device{}, fmt.Errorf("thin: device %d: %w", id, ErrNoDevice)
}

// Mapping is a run of blocks of a device, and where their data is. All are in data blocks.
type Mapping struct {
	Begin, Data, Len uint64
	Time             uint32 // at which the data blocks were given out
}

// Mappings calls each for all mappings of a device, ascending; those that follow one another
// in the device and in the data, and have one time, are one run.
func (v *View) Mappings(root Addr, each func(Mapping) error) error {
	var run Mapping
	t := pdata.Tree{Dev: &v.dev, ValueSize: mappingSize}
	t.Leaf = func(n pdata.TreeNode, i, j int) error {
		keys, values := n.Words()
		for ; i < j; i++ {
			key, value := le.Uint64(keys[8*i:]), le.Uint64(values[8*i:])
			data, time := value>>timeBits, uint32(value&(1<<timeBits-1))
			if run.Len > 0 && key == run.Begin+run.Len && data == run.Data+run.Len && time == run.Time {
				run.Len++
				continue
			}
			if run.Len > 0 {
				if err := each(run); err != nil {
					return err
				}
			}
			run = Mapping{key, data, 1, time}
		}
		return nil
	}
	if err := t.Walk(root, pdata.AllKeys()); err != nil || run.Len == 0 {
		return err
	}
	return each(run)
}
