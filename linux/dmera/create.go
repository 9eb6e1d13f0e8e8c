package dmera

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"time"

	"tidemark/block"
	"tidemark/format/era"
	"tidemark/linux/dm"
	"tidemark/linux/mounts"
	"tidemark/linux/sysfs"
)

// DefaultBlockSize is the usual block size of era devices, in bytes: 4096 sectors.
const DefaultBlockSize = 2 << 20

// CreateOptions describe a new era device. All but Force must be given.
type CreateOptions struct {
	Options
	Name       string
	Data, Meta string // paths of block devices
	BlockSize  int64  // unit in which writes are remembered, in bytes: a multiple of 4096
	// Force overwrites the content of the metadata device. A device that is in use
	// is refused all the same.
	Force bool
}

// Create writes new metadata with an identity of its own, and makes a device of
// all of Data, with discards off. The content of Data does not change.
//
// It refuses, with ErrRefused and before anything is written, devices that are in
// use, overlap or are read-only, a metadata device that is too small for any load
// (see era.NewPlan) or whose start is not zero or that has a signature, and a name
// that is taken. When a later step fails the metadata is zeroed again.
func Create(ctx context.Context, ctl *dm.Control, o CreateOptions) (*Device, error) {
	if err := nameFree(ctl, o.Name); err != nil {
		return nil, err
	}
	if o.BlockSize <= 0 || o.BlockSize%era.BlockSize != 0 || o.BlockSize/sectorSize >= 1<<32 {
		return nil, refused("block size of %d bytes: want a multiple of %d below 2 TiB", o.BlockSize, era.BlockSize)
	}
	p, err := claimPair(ctl, o.Data, o.Meta)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	plan, err := era.NewPlan(p.data.Size(), uint32(o.BlockSize/sectorSize), era.PlanOptions{})
	if err != nil {
		return nil, refused("data %s: %w", o.Data, err)
	}
	if err := largeEnough(plan, p.meta.Size()); err != nil {
		return nil, refused("metadata %s: %w", o.Meta, err)
	}
	if !o.Force {
		if err := refuseContent(p.meta); err != nil {
			return nil, err
		}
	}
	if _, err := ctl.TargetVersion(targetType); err != nil {
		return nil, fmt.Errorf("dmera: %w", err)
	}
	id, err := format(ctx, p.meta, plan)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("dmera: metadata %s: %w", o.Meta, err), unformat(o.Meta, id))
	}
	// The gap record belongs to the metadata that was there before.
	_ = os.Remove(gapPath(o.withDefaults().StateDir, o.Name))
	t := table{sectors: uint64(p.data.Size() / sectorSize), meta: p.metaD, data: p.dataDev, blockSectors: plan.BlockSectors}
	if err := p.Close(); err != nil {
		return nil, err
	}
	if err := activate(ctl, o.Name, uuidOf(id), t); err != nil {
		return nil, errors.Join(err, unformat(o.Meta, id))
	}
	return Open(ctl, o.Name, o.Options)
}

// nameFree refuses a name that is taken.
func nameFree(ctl *dm.Control, name string) error {
	_, err := ctl.Info(name)
	switch {
	case err == nil:
		return refused("%s: %w", name, dm.ErrExists)
	case errors.Is(err, dm.ErrNotFound):
		return nil
	}
	return fmt.Errorf("dmera: %w", err)
}

// largeEnough refuses a metadata device that can become full.
func largeEnough(plan era.Plan, size int64) error {
	blocks := usableBlocks(size)
	if need := plan.Worst / era.BlockSize; blocks < need {
		return fmt.Errorf("%w: %d KiB, and %d data blocks of %d sectors need %d KiB, better %d KiB",
			era.ErrNoSpace, blocks*era.BlockSize>>10, plan.NrBlocks, plan.BlockSectors, plan.Worst>>10, plan.Recommended>>10)
	}
	return nil
}

// usableBlocks returns how many blocks the kernel can use of a metadata device: it
// never looks for a free block in the last bitmap of a space map when that bitmap
// is whole (sm_ll_find_free_block).
func usableBlocks(size int64) int64 {
	const bitmap = era.MaxMetadataBlocks / 255
	blocks := min(size/era.BlockSize, era.MaxMetadataBlocks)
	if blocks%bitmap == 0 {
		blocks -= bitmap
	}
	return blocks
}

// refuseContent refuses a metadata device that holds anything.
func refuseContent(meta *block.Device) error {
	md, err := era.Open(meta, meta.Size())
	if err == nil {
		return refused("metadata %s: %w with %d blocks, in era %d", meta.Path(), ErrHasMetadata, md.Superblock().NrBlocks, md.Superblock().Era)
	}
	if !errors.Is(err, era.ErrNotEra) {
		return refused("metadata %s: %w: %w", meta.Path(), ErrHasMetadata, err)
	}
	found, err := mounts.Probe(inAligned{meta}, meta.Size())
	if err != nil {
		return fmt.Errorf("dmera: metadata %s: %w", meta.Path(), err)
	}
	if len(found) > 0 {
		return refused("metadata %s: %w: %s", meta.Path(), ErrNotEmpty, found[0])
	}
	b := block.AlignedBuffer(era.BlockSize)
	if _, err := meta.ReadAt(b, 0); err != nil {
		return fmt.Errorf("dmera: metadata %s: %w", meta.Path(), err)
	}
	if !block.IsZero(b) {
		return refused("metadata %s: %w: its first %d bytes are not zero", meta.Path(), ErrNotEmpty, era.BlockSize)
	}
	return nil
}

// inAligned reads through aligned memory, as direct I/O demands, into any.
type inAligned struct{ dev *block.Device }

// ReadAt implements io.ReaderAt.
func (a inAligned) ReadAt(p []byte, off int64) (int, error) {
	b := block.AlignedBuffer(len(p))
	n, err := a.dev.ReadAt(b, off)
	return copy(p, b[:n]), err
}

// format writes the metadata of a device without any writes, and checks it.
func format(ctx context.Context, meta *block.Device, plan era.Plan) (era.Identity, error) {
	var id era.Identity
	rand.Read(id[:])
	b := era.NewBuilder(meta, meta.Size())
	b.Identify(id)
	err := b.Begin(era.Header{BlockSectors: plan.BlockSectors, NrBlocks: plan.NrBlocks})
	if err == nil {
		err = b.BeginArray()
	}
	zeros := make([]era.Era, 1<<16)
	for left := int(plan.NrBlocks); err == nil && left > 0; left -= len(zeros) {
		if err = context.Cause(ctx); err == nil {
			err = b.Eras(zeros[:min(left, len(zeros))])
		}
	}
	if err == nil {
		err = b.EndArray()
	}
	if err == nil {
		err = b.End()
	}
	if err != nil {
		return id, err
	}
	var fault error
	_, err = era.Check(meta, meta.Size(), func(f *era.Fault) { fault = f })
	if err == nil && fault != nil {
		err = fmt.Errorf("read back: %w", fault)
	}
	return id, err
}

// unformat zeroes the superblock that format wrote, or left zero.
func unformat(path string, id era.Identity) error {
	dev, err := block.Open(path, block.Options{Write: true, Direct: true})
	if err != nil {
		return err
	}
	md, err := era.Open(dev, dev.Size())
	if err == nil && md.Superblock().Identity == id {
		_, err = dev.WriteAt(block.AlignedBuffer(era.BlockSize), 0)
	}
	if errors.Is(err, era.ErrNotEra) {
		err = nil
	}
	return errors.Join(err, dev.Close())
}

// uuidOf returns the device-mapper UUID for metadata of that identity. The kernel
// refuses a second device with the same UUID.
func uuidOf(id era.Identity) string {
	if id == (era.Identity{}) {
		return ""
	}
	return "TIDEMARK-ERA-" + id.String()
}

// Programs such as udev open a device for a moment. Removing one that was just made
// waits for patience; removing one that users may have in use, for removePatience.
const (
	patience       = 10 * time.Second
	removePatience = 2 * time.Second
)

// activate makes the device. It holds the device exclusively until discards are off, so
// that nothing can be mounted from it, and tells udev only then.
func activate(ctl *dm.Control, name, uuid string, t table) (err error) {
	info, err := ctl.Create(name, uuid)
	if err != nil {
		return fmt.Errorf("dmera: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ctl.Remove(name, dm.RemoveOptions{Patience: patience}))
		}
	}()
	if _, err := ctl.Load(name, []dm.Target{t.target()}, dm.LoadOptions{}); err != nil {
		return fmt.Errorf("dmera: %w", err)
	}
	node, err := sysfs.Node(info.Dev())
	if err != nil {
		return fmt.Errorf("dmera: %s: %w", name, err)
	}
	held, err := block.Open(node, block.Options{Exclusive: true})
	if err != nil {
		return fmt.Errorf("dmera: %s: %w", name, err)
	}
	_, pending, err := ctl.StartResume(name, dm.ResumeOptions{})
	if err != nil {
		return errors.Join(fmt.Errorf("dmera: %w", err), held.Close())
	}
	err = forbidDiscards(info.Dev())
	if err != nil {
		err = fmt.Errorf("dmera: %s: %w", name, err)
	}
	return errors.Join(err, held.Close(), pending.Wait())
}
