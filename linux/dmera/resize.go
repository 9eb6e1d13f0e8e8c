package dmera

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	"tidemark/block"
	"tidemark/format/era"
	"tidemark/linux/dm"
	"tidemark/linux/sysfs"
)

// change is what reload changes; zero values leave things as they are.
type change struct {
	sectors  uint64
	identity era.Identity
	data     dm.Dev
}

// reload suspends the device, changes it, and resumes it with discards off. The era
// target reads its metadata when a table is loaded. So the device must be suspended
// before that: the new table would miss what the old one still wrote.
func reload(ctl *dm.Control, info dm.Info, c change) error {
	t, err := readTable(ctl, info.Name)
	if err != nil {
		return err
	}
	if c.sectors != 0 {
		t.sectors = c.sectors
	}
	if c.data != (dm.Dev{}) {
		t.data = c.data
	}
	_, err = ctl.Suspend(info.Name, dm.SuspendOptions{NoLockFS: true})
	if err == nil && c.identity != (era.Identity{}) {
		err = stamp(t.meta, c.identity)
	}
	if err == nil {
		_, err = ctl.Load(info.Name, []dm.Target{t.target()}, dm.LoadOptions{})
	}
	_, pending, failed := ctl.StartResume(info.Name, dm.ResumeOptions{})
	if failed != nil {
		// The old table is gone, and what the new one began must not be overtaken
		// by another: it stays suspended. No write is lost; they wait.
		failed = fmt.Errorf("%w; the device is suspended: when the reason is gone, resume it with \"dmsetup resume %s\"", failed, info.Name)
		return errors.Join(err, failed)
	}
	return errors.Join(err, forbidDiscards(info.Dev()), pending.Wait())
}

// stamp gives the metadata of a suspended device an identity.
func stamp(meta dm.Dev, id era.Identity) error {
	path, err := sysfs.Node(meta)
	if err != nil {
		return err
	}
	dev, err := block.Open(path, block.Options{Write: true, Direct: true})
	if err != nil {
		return err
	}
	return errors.Join(era.Stamp(dev, dev.Size(), id), dev.Close())
}

// Adopt gives the metadata of a device that another program made an identity, if it has
// none, switches discards off, and returns the identity. Marks are bound to the identity.
// The device may be in use: a process of its own suspends it for a moment, as for Drain.
func (d *Device) Adopt(ctx context.Context) (era.Identity, error) {
	if err := d.answering(ctx); err != nil {
		return era.Identity{}, err
	}
	id, err := d.Identity()
	if err != nil {
		return id, err
	}
	if id != (era.Identity{}) {
		if err := forbidDiscards(d.info.Dev()); err != nil {
			return id, fmt.Errorf("dmera: %s: %w", d.Name(), err)
		}
		return id, nil
	}
	rand.Read(id[:])
	if err := d.runStep(stepAdopt, id.String()); err != nil {
		return era.Identity{}, err
	}
	return id, d.remember() // earlier notes are for metadata without an identity
}

// Resize makes the device as large as its data device is now. The new blocks are in no
// era. The device may be in use: a process of its own suspends it for a moment, as for
// Drain.
//
// It refuses with ErrRefused when the data device has become smaller, and when the
// metadata is too small for the new size, or too full to hold it now.
func (d *Device) Resize(ctx context.Context) error {
	size, err := d.DataSize()
	if err != nil {
		return err
	}
	switch {
	case size == d.Size():
		return nil
	case size < d.Size():
		return refused("%s: its data device %s has only %d bytes, it has %d", d.Name(), d.dataPath, size, d.Size())
	}
	st, err := d.Status(ctx)
	if err != nil {
		return err
	}
	if err := d.canGrow(st, size); err != nil {
		return err
	}
	if err := d.runStep(stepResize, strconv.FormatInt(size/sectorSize, 10)); err != nil {
		return err
	}
	if d.table, err = readTable(d.ctl, d.Name()); err != nil {
		return err
	}
	after, err := d.Status(ctx)
	if err == nil && after.Discards != st.Discards {
		err = fmt.Errorf("dmera: %s: resize: %w: the device took %d discards meanwhile", d.Name(), ErrDiscards, after.Discards-st.Discards)
	}
	return err
}

// Rebase puts another data device below the device, which has to hold the same bytes at the same
// places: one that is over the data device, or below it. The device may be in use: a process of its
// own suspends it for a moment, as for Drain. A discard that passes before they are switched off
// again is a gap (NoteGaps).
func (d *Device) Rebase(data dm.Dev) error {
	path, err := sysfs.Node(data)
	if err == nil {
		err = d.runStep(stepRebase, data.String())
	}
	if err != nil {
		return err
	}
	d.dataPath = path
	d.table, err = readTable(d.ctl, d.Name())
	return err
}

// canGrow refuses to grow a device when the kernel could run out of metadata on the
// way: the device would stay suspended.
func (d *Device) canGrow(st Status, size int64) error {
	plan, err := era.NewPlan(size, d.table.blockSectors, era.PlanOptions{})
	if err != nil {
		return refused("%s: %w", d.Name(), err)
	}
	total := int64(st.TotalMetadataBlocks) * era.BlockSize
	if err := largeEnough(plan, total); err != nil {
		return refused("%s: metadata %s: %w", d.Name(), d.metaPath, err)
	}
	// At the same time the kernel needs the new part of the array, new nodes over it,
	// the old nodes until the commit, and writesets. As much again is for the rest.
	added := int64(plan.NrBlocks) - (d.Size()+d.BlockSize()-1)/d.BlockSize()
	need := 2*(added/erasPerBlock+4*int64(plan.NrBlocks)/bitsPerBlock) + 64
	if free := int64(st.TotalMetadataBlocks - st.UsedMetadataBlocks); free < need {
		return refused("%s: metadata %s: %d blocks are free, to grow needs %d; close what holds a snapshot, or wait until older eras are digested", d.Name(), d.metaPath, free, need)
	}
	return nil
}

// What one metadata block holds: eras of the array, bits of a writeset.
const (
	erasPerBlock = 1018
	bitsPerBlock = 32576
)

// DataSize returns the size of the data device now, in bytes.
func (d *Device) DataSize() (int64, error) {
	n, err := sysfs.Uint(filepath.Join(d.table.data.Dir(), "size"))
	if err != nil {
		return 0, fmt.Errorf("dmera: %s: data device: %w", d.Name(), err)
	}
	return int64(n) * sectorSize, nil
}
