package dmera

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/format/era"
	"tidemark/linux/dm"
)

// ActivateOptions name an era device that was made before.
type ActivateOptions struct {
	Options
	Name       string
	Data, Meta string // paths of block devices
	BlockSize  int64  // in bytes; 0 takes what the metadata says, another is refused
}

// Activate brings up a device after a reboot or Remove, from its metadata, with
// discards off. Metadata without an identity gets one; nothing else in it changes.
// Where the data device has grown, the era device has the size that its metadata
// says; Resize makes it larger.
//
// When the device is up already, over the same data and metadata, Activate only
// switches its discards off and notes those that it took (NoteGaps); Adopt gives it
// an identity.
//
// It refuses with ErrRefused data and metadata that are in use, overlap or are
// read-only, data that is smaller than the metadata says, and a name that another
// device has. Other errors wrap those of format/era.
func Activate(ctl *dm.Control, o ActivateOptions) (*Device, error) {
	if d, err := already(ctl, o); d != nil || err != nil {
		return d, err
	}
	p, err := claimPair(ctl, o.Data, o.Meta)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	md, err := era.Open(p.meta, p.meta.Size())
	if err != nil {
		return nil, fmt.Errorf("dmera: metadata %s: %w", o.Meta, err)
	}
	s := md.Superblock()
	if o.BlockSize != 0 && o.BlockSize != s.BlockBytes() {
		return nil, refused("metadata %s: its blocks are of %d bytes, not %d", o.Meta, s.BlockBytes(), o.BlockSize)
	}
	size := p.data.Size()
	if size <= (int64(s.NrBlocks)-1)*s.BlockBytes() {
		return nil, refused("data %s: %d bytes, and the metadata tells of %d blocks of %d bytes: is it the data of this metadata?", o.Data, size, s.NrBlocks, s.BlockBytes())
	}
	if s.NrBlocks > 0 {
		size = min(size, int64(s.NrBlocks)*s.BlockBytes())
	}
	if s.Identity == (era.Identity{}) {
		rand.Read(s.Identity[:])
		if err := era.Stamp(p.meta, p.meta.Size(), s.Identity); err != nil {
			return nil, fmt.Errorf("dmera: metadata %s: %w", o.Meta, err)
		}
	}
	t := table{sectors: uint64(size / sectorSize), meta: p.metaD, data: p.dataDev, blockSectors: s.BlockSectors}
	if err := p.Close(); err != nil {
		return nil, err
	}
	if err := activate(ctl, o.Name, uuidOf(s.Identity), t); err != nil {
		return nil, err
	}
	return Open(ctl, o.Name, o.Options)
}

// already returns the device when it is up.
func already(ctl *dm.Control, o ActivateOptions) (*Device, error) {
	info, err := ctl.Info(o.Name)
	if errors.Is(err, dm.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("dmera: %w", err)
	}
	t, err := readTable(ctl, o.Name)
	if errors.Is(err, ErrNotEra) {
		return nil, refused("%s: %w", o.Name, dm.ErrExists)
	}
	if err != nil {
		return nil, err
	}
	if err := t.same(o); err != nil {
		return nil, err
	}
	d, err := Open(ctl, o.Name, o.Options)
	if err != nil {
		return nil, err
	}
	// Switch them off also where the past ones cannot be noted, and the other way round.
	err = forbidDiscards(info.Dev())
	if err != nil {
		err = fmt.Errorf("dmera: %s: %w", o.Name, err)
	}
	if err = errors.Join(err, d.remember()); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// remember notes the discards of a device that answers, where StateDir is writable. In
// an initramfs it is not, and there no discards were switched on yet.
func (d *Device) remember() error {
	_, err := d.NoteGaps(context.Background())
	if errors.Is(err, ErrSuspended) || errors.Is(err, ErrFailed) || errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) {
		return nil
	}
	return err
}

// same refuses a table over other devices.
func (t table) same(o ActivateOptions) error {
	for _, want := range []struct {
		what, path string
		dev        dm.Dev
	}{{"data", o.Data, t.data}, {"metadata", o.Meta, t.meta}} {
		if id, err := block.Identify(want.path); err != nil || id.Dev() != want.dev {
			return refused("%s: %w, with %s on %s, not on %s", o.Name, dm.ErrExists, want.what, want.dev, want.path)
		}
	}
	if o.BlockSize != 0 && o.BlockSize != int64(t.blockSectors)*sectorSize {
		return refused("%s: %w, with blocks of %d bytes", o.Name, dm.ErrExists, int64(t.blockSectors)*sectorSize)
	}
	return nil
}

// Remove takes the device down and closes d. The metadata is left as after a clean
// shutdown; a held snapshot stays in it. Remove first notes the discards that the
// device took; when that fails the device stays up. The error wraps dm.ErrBusy when
// the device is in use: nothing was changed then, and d is still open.
func (d *Device) Remove() error {
	if err := d.remember(); err != nil {
		return err
	}
	if err := d.ctl.Remove(d.Name(), dm.RemoveOptions{Patience: removePatience}); err != nil {
		return fmt.Errorf("dmera: %w", err)
	}
	return d.Close()
}
