package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// Sector is the unit of the block layer, in bytes, whatever the disk's own.
const Sector = 512

// MaxSlots is the number of disks that can be tracked at once.
const MaxSlots = 256 // MAX_SLOTS in track.bpf.c

// Flags of a Disk.
const (
	DiskBio  = 1 // completes bios, not requests (dm, md, zram)
	DiskNVMe = 2 // passthrough commands without data may change its content
)

// Disk is what the programs know of a tracked disk. It has the layout of struct
// disk in track.bpf.c.
type Disk struct {
	DiskSeq     uint64
	Sectors     uint64 // size of the whole disk
	Slot        uint32
	Shift       uint32 // log2 of the sectors in a block
	Flags       uint32
	ZoneSectors uint32 // 0 unless zoned
}

// flight has the layout of struct flight in track.bpf.c.
type flight struct {
	First, Last uint64
	Slot        uint32
	_           uint32
}

// DevT packs a device number as the kernel does internally (MKDEV).
func DevT(major, minor uint32) uint32 { return major<<20 | minor }

// Put begins (or changes) the tracking of the disk dev. The slot must hold a
// bitmap already.
func (f *Facility) Put(dev uint32, d Disk) error {
	old, known, err := f.Get(dev)
	if err != nil {
		return err
	}
	// Counted before the entry appears: a completion must never find the entry
	// and no count.
	if d.Flags&DiskBio != 0 && (!known || old.Flags&DiskBio == 0) {
		if err := f.addBioDisk(1); err != nil {
			return err
		}
	}
	if err := f.maps[mapDisks].Put(dev, d); err != nil {
		return fmt.Errorf("bpf: add disk %d:%d: %w", dev>>20, dev&0xfffff, err)
	}
	return nil
}

// Get returns the entry of the disk dev, and whether there is one.
func (f *Facility) Get(dev uint32) (Disk, bool, error) {
	var d Disk
	err := f.maps[mapDisks].Lookup(dev, &d)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return Disk{}, false, nil
	}
	if err != nil {
		return Disk{}, false, fmt.Errorf("bpf: look up disk %d:%d: %w", dev>>20, dev&0xfffff, err)
	}
	return d, true, nil
}

// Disks returns all entries by device number.
func (f *Facility) Disks() (map[uint32]Disk, error) {
	all := map[uint32]Disk{}
	var dev uint32
	var d Disk
	it := f.maps[mapDisks].Iterate()
	for it.Next(&dev, &d) {
		all[dev] = d
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("bpf: list disks: %w", err)
	}
	return all, nil
}

// Drop ends the tracking of the disk dev and empties its slot. It is no error
// when the disk is not tracked.
func (f *Facility) Drop(dev uint32) error {
	d, known, err := f.Get(dev)
	if err != nil || !known {
		return err
	}
	if err := f.maps[mapDisks].Delete(dev); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("bpf: drop disk %d:%d: %w", dev>>20, dev&0xfffff, err)
	}
	if err := f.maps[mapSlots].Delete(d.Slot); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("bpf: empty slot %d: %w", d.Slot, err)
	}
	if d.Flags&DiskBio == 0 {
		return nil
	}
	return errors.Join(f.addBioDisk(-1), f.dropFlights(d.Slot))
}

// addBioDisk is called under the machine's lock; the programs only read.
func (f *Facility) addBioDisk(n int64) error {
	var count uint64
	if err := f.maps[mapBioDisks].Lookup(doneKey, &count); err != nil {
		return fmt.Errorf("bpf: count bio-based disks: %w", err)
	}
	if err := f.maps[mapBioDisks].Put(doneKey, uint64(max(0, int64(count)+n))); err != nil {
		return fmt.Errorf("bpf: count bio-based disks: %w", err)
	}
	return nil
}

// dropFlights forgets the bios in flight of a slot, so that the slot's next
// disk does not get marks of this one.
func (f *Facility) dropFlights(slot uint32) error {
	var addr uint64
	var fl flight
	var gone []uint64
	it := f.maps[mapFlights].Iterate()
	for it.Next(&addr, &fl) {
		if fl.Slot == slot {
			gone = append(gone, addr)
		}
	}
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return fmt.Errorf("bpf: list bios in flight: %w", err)
	}
	for _, addr := range gone {
		if err := f.maps[mapFlights].Delete(addr); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("bpf: forget a bio in flight: %w", err)
		}
	}
	return nil
}

// Swap makes b the active bitmap of the slot. When it returns, no CPU writes to
// the bitmap that was active before (see the package comment).
func (f *Facility) Swap(slot uint32, b *Bitmap) error {
	if err := f.maps[mapSlots].Update(slot, b.m, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("bpf: swap the bitmap of slot %d: %w", slot, err)
	}
	return nil
}

// Active returns the id of the slot's active bitmap, and whether there is one.
// On kernels before 6.8 it costs an RCU grace period.
func (f *Facility) Active(slot uint32) (uint32, bool, error) {
	var id uint32
	err := f.maps[mapSlots].Lookup(slot, &id)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("bpf: look up slot %d: %w", slot, err)
	}
	return id, true, nil
}
