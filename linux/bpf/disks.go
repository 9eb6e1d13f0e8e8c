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
	DiskBio   = 1 // completes bios, not requests (dm, md, zram)
	DiskNVMe  = 2 // passthrough commands without data may change its content
	DiskRemap = 4 // tells of each bio it remaps, and of nothing that it writes for itself
)

// Disk is what the programs know of a tracked disk. It has the layout of struct
// disk in track.bpf.c.
type Disk struct {
	DiskSeq     uint64
	Sectors     uint64 // size of the whole disk
	Dev         uint32 // of the whole disk, see DevT
	Slot        uint32
	Shift       uint32 // log2 of the sectors in a block
	Flags       uint32
	ZoneSectors uint32 // 0 unless zoned
	_           uint32
}

const sinceNever = 1<<64 - 1 // SINCE_NEVER in track.bpf.c

// flight has the layout of struct flight in track.bpf.c.
type flight struct {
	First, Last uint64
	Slot        uint32
	_           uint32
}

// DevT packs a device number as the kernel does internally (MKDEV).
func DevT(major, minor uint32) uint32 { return major<<20 | minor }

// The table of disks is an array used as a hash table with linear probing; see
// track.bpf.c.
const (
	tableSize   = 1024
	tableShift  = 22
	tableProbes = 16
	devFree     = 0
	devGone     = 0xffffffff
	tableHash   = 2654435761
)

// place calls f with the positions where dev may stand, until f returns false.
func place(dev uint32, f func(at uint32) bool) {
	for i := range uint32(tableProbes) {
		if !f((dev*tableHash>>tableShift + i) % tableSize) {
			return
		}
	}
}

// Put begins the tracking of the disk d.Dev with b as its first bitmap. When it fails,
// nothing has changed. The machine's lock must be held.
func (f *Facility) Put(d Disk, b *Bitmap) error {
	if _, known, err := f.Get(d.Dev); err != nil || known {
		return errors.Join(err, f.inUse(d.Dev, known))
	}
	at, err := f.freePlace(d.Dev)
	if err != nil {
		return err
	}
	if err := inOrder(f.putting(at, d, b)); err != nil {
		return errors.Join(err, f.clear(at, d))
	}
	return nil
}

// putting is what Put does, in steps. The device number comes last, with the grace
// period of activate before it: an entry is found only when all of it is there. The
// time follows it, because nothing is marked of an issue before.
func (f *Facility) putting(at uint32, d Disk, b *Bitmap) []func() error {
	hidden := d
	hidden.Dev = devGone
	return []func() error{
		func() error { return f.setDisk(at, hidden) },
		func() error { return f.attachFor(d) },
		func() error { return f.forgetSince(d.Slot) },
		func() error { return f.activate(d.Slot, b) },
		func() error { return f.setDisk(at, d) },
		func() error { return f.begun(d.Slot) },
	}
}

func inOrder(steps []func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// attachFor attaches the programs that a disk needs beyond those that are always.
func (f *Facility) attachFor(d Disk) error {
	if d.Flags&DiskBio == 0 {
		return nil
	}
	return f.attachBio()
}

func (f *Facility) attachAll(names []string) error {
	for _, name := range names {
		if err := attach(f.dir, name, f.progs[name]); err != nil {
			return err
		}
	}
	return nil
}

func (f *Facility) inUse(dev uint32, known bool) error {
	if !known {
		return nil
	}
	return fmt.Errorf("bpf: add disk %d:%d: it is tracked already", dev>>20, dev&0xfffff)
}

// freePlace returns where an entry for dev can go.
func (f *Facility) freePlace(dev uint32) (found uint32, err error) {
	err = fmt.Errorf("bpf: add disk %d:%d: the table of disks is full", dev>>20, dev&0xfffff)
	place(dev, func(at uint32) bool {
		var d Disk
		if lerr := f.maps[mapDisks].Lookup(at, &d); lerr != nil {
			err = fmt.Errorf("bpf: look up disk: %w", lerr)
			return false
		}
		if d.Dev == devFree || d.Dev == devGone {
			found, err = at, nil
			return false
		}
		return true
	})
	return found, err
}

func (f *Facility) setDisk(at uint32, d Disk) error {
	if err := f.maps[mapDisks].Put(at, d); err != nil {
		return fmt.Errorf("bpf: write entry %d of the disks: %w", at, err)
	}
	return nil
}

// Get returns the entry of the disk dev, and whether there is one.
func (f *Facility) Get(dev uint32) (Disk, bool, error) {
	_, d, known, err := f.find(dev)
	return d, known, err
}

func (f *Facility) find(dev uint32) (found uint32, d Disk, known bool, err error) {
	place(dev, func(at uint32) bool {
		if err = f.maps[mapDisks].Lookup(at, &d); err != nil {
			err = fmt.Errorf("bpf: look up disk %d:%d: %w", dev>>20, dev&0xfffff, err)
			return false
		}
		found, known = at, d.Dev == dev
		return !known && d.Dev != devFree
	})
	if !known {
		return 0, Disk{}, false, err
	}
	return found, d, true, err
}

// Disks returns all entries by device number.
func (f *Facility) Disks() (map[uint32]Disk, error) {
	table, err := f.table()
	all := map[uint32]Disk{}
	for _, d := range table {
		if d.Dev != devFree && d.Dev != devGone {
			all[d.Dev] = d
		}
	}
	return all, err
}

// table reads the table of disks at once (Linux 5.6): one by one takes as long as a third of a boot's
// work.
func (f *Facility) table() ([]Disk, error) {
	keys, table := make([]uint32, tableSize), make([]Disk, tableSize)
	n, err := f.maps[mapDisks].BatchLookup(new(ebpf.MapBatchCursor), keys, table, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) || n != tableSize { // there is no next one
		return nil, fmt.Errorf("bpf: list disks: %d of %d entries: %w", n, tableSize, err)
	}
	return table, nil
}

// Drop ends the tracking of the disk dev and empties its slot. It is no error
// when the disk is not tracked. The machine's lock must be held.
func (f *Facility) Drop(dev uint32) error {
	at, d, known, err := f.find(dev)
	if err != nil || !known {
		return err
	}
	return f.clear(at, d)
}

// clear empties the entry of a disk, and its slot.
func (f *Facility) clear(at uint32, d Disk) error {
	d.Dev = devGone
	if err := f.setDisk(at, d); err != nil {
		return err
	}
	// This waits until no program uses the entry any more.
	if err := f.maps[mapActive].Delete(d.Slot); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("bpf: empty slot %d: %w", d.Slot, err)
	}
	if d.Flags&DiskBio != 0 {
		if err := errors.Join(f.dropFlights(d.Slot), f.detachBio()); err != nil {
			return err
		}
	}
	return f.setDisk(at, Disk{Dev: devGone})
}

// Sweep undoes what a Put that was killed has done. The machine's lock must be held.
func (f *Facility) Sweep() error {
	table, err := f.table()
	if err != nil {
		return err
	}
	used := map[uint32]bool{}
	for _, d := range table {
		if d.Dev != devFree && d.Dev != devGone {
			used[d.Slot] = true
		}
	}
	for at, d := range table {
		if d.Dev != devGone || d.Sectors == 0 || used[d.Slot] {
			continue
		}
		if err := f.clear(uint32(at), d); err != nil {
			return err
		}
	}
	return nil
}

// detachBio detaches the programs for bio-based disks when there are none.
func (f *Facility) detachBio() error {
	all, err := f.Disks()
	if err != nil {
		return err
	}
	for _, d := range all {
		if d.Flags&DiskBio != 0 {
			return nil
		}
	}
	// With progSwap, the module could not be removed from the kernel.
	return errors.Join(f.drop(progSwap), f.dropBio())
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
// the bitmap that was active before (see the package comment). Nobody else may swap
// the bitmaps of this slot meanwhile.
func (f *Facility) Swap(slot uint32, b *Bitmap) error {
	return inOrder(f.swapping(slot, b))
}

func (f *Facility) swapping(slot uint32, b *Bitmap) []func() error {
	return []func() error{
		func() error { return f.forgetSince(slot) },
		func() error { return f.activate(slot, b) },
		func() error { return f.begun(slot) },
	}
}

// forgetSince has all completions marked until begun.
func (f *Facility) forgetSince(slot uint32) error {
	if err := f.maps[mapSince].Put(slot, uint64(sinceNever)); err != nil {
		return fmt.Errorf("bpf: have the completions of slot %d marked: %w", slot, err)
	}
	return nil
}

// activate puts b in the slot and waits for whoever uses the bitmap that was there.
func (f *Facility) activate(slot uint32, b *Bitmap) error {
	if err := f.maps[mapActive].Update(slot, b.m, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("bpf: swap the bitmap of slot %d: %w", slot, err)
	}
	return nil
}

// begun says that from now on each issue is marked in the slot's active bitmap.
func (f *Facility) begun(slot uint32) error {
	failed, err := f.progs[f.began].Run(&ebpf.RunOptions{Context: uint64(slot)})
	if err == nil && failed != 0 {
		err = fmt.Errorf("it returned %d", failed)
	}
	if err != nil {
		return fmt.Errorf("bpf: note since when the bitmap of slot %d is active: %w", slot, err)
	}
	return nil
}

// Active returns the id of the slot's active bitmap, and whether there is one.
// On kernels before 6.8 it costs an RCU grace period.
func (f *Facility) Active(slot uint32) (uint32, bool, error) {
	var id uint32
	err := f.maps[mapActive].Lookup(slot, &id)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("bpf: look up slot %d: %w", slot, err)
	}
	return id, true, nil
}
