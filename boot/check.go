package boot

import (
	"fmt"

	"tidemark/block"
	"tidemark/format/era"
)

// CheckDevices fails when the next boot could not open the entry: its data and metadata
// overlap, or the metadata is not that of this data device. Metadata that is all zero
// passes when the entry has Create. The error wraps ErrUnsuitable, or an error of
// format/era.
func (e Entry) CheckDevices() error {
	data, err := block.Identify(DevicePath(e.Data))
	if err != nil {
		return fmt.Errorf("boot: data: %w", err)
	}
	meta, err := block.Identify(DevicePath(e.Meta))
	if err != nil {
		return fmt.Errorf("boot: metadata: %w", err)
	}
	if data.Disk == meta.Disk && data.Start < meta.Start+meta.Size && meta.Start < data.Start+data.Size {
		return fmt.Errorf("boot: %s and %s overlap: %w", e.Data, e.Meta, ErrUnsuitable)
	}
	fresh, err := zeroed(meta.Path)
	switch {
	case err != nil:
		return err
	case fresh && e.Create == 0:
		return fmt.Errorf("boot: %s: there is no metadata yet; --create 2M lets the next boot make it, with blocks of 2 MiB: %w", e.Meta, ErrUnsuitable)
	case fresh:
		return nil
	}
	dev, err := block.Open(meta.Path, block.Options{Direct: true})
	if err != nil {
		return fmt.Errorf("boot: metadata: %w", err)
	}
	defer dev.Close()
	m, err := era.Open(dev, dev.Size())
	if err != nil {
		return fmt.Errorf("boot: metadata %s: %w", e.Meta, err)
	}
	s := m.Superblock()
	if blocks := (data.Size + s.BlockBytes() - 1) / s.BlockBytes(); blocks != int64(s.NrBlocks) {
		return fmt.Errorf("boot: metadata %s is for %d blocks of %d bytes, the data device has %d; give the data device that belongs to it: %w",
			e.Meta, s.NrBlocks, s.BlockBytes(), blocks, ErrUnsuitable)
	}
	return nil
}

// zeroed reports whether the first block of metadata is all zero: the kernel makes new
// metadata then.
func zeroed(path string) (bool, error) {
	dev, err := block.Open(path, block.Options{Direct: true})
	if err != nil {
		return false, fmt.Errorf("boot: metadata: %w", err)
	}
	defer dev.Close()
	first := block.AlignedBuffer(era.BlockSize)
	if _, err := dev.ReadAt(first, 0); err != nil {
		return false, fmt.Errorf("boot: metadata: %w", err)
	}
	return block.IsZero(first), nil
}
