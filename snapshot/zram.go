package snapshot

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/linux/zram"
	"tidemark/words"
)

// planZram judges a store in memory. Without a size it has room for a tenth of the origin, and for what
// a quarter of the memory that is free now holds.
func (s *Snapshot) planZram(v *Volume, size int64) error {
	if err := zram.Supported(); err != nil {
		return fmt.Errorf("%w: %w", ErrStore, err)
	}
	if s.Persistent {
		return fmt.Errorf("%w: memory does not outlive it: leave --store out, or give a disk or partition", ErrNotKept)
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return err
	}
	free := int64(info.Freeram+info.Bufferram) * int64(info.Unit)
	least := max(MinStore, 8*s.Chunk)
	v.Store = Store{Kind: Zram, Path: Zram, Size: size}
	if size == 0 {
		v.Store.Size, v.sized = max(min(v.share.size, free/4), least), v.share.why
		if v.Store.Size < v.share.size {
			v.sized = "a quarter of the memory that is free"
		}
	}
	v.Store.Size = (v.Store.Size + s.Chunk - 1) / s.Chunk * s.Chunk
	switch {
	case v.Size%zram.SectorSize != 0:
		return fmt.Errorf("%w: the sectors of zram have %d bytes, and %s is no multiple of that: give another place", ErrStore, zram.SectorSize, v.Name)
	case v.Store.Size < 8*s.Chunk:
		return fmt.Errorf("%w: %s are room for less than 8 chunks of %s: give a larger size", ErrStore, words.Size(v.Store.Size), words.Size(s.Chunk))
	case v.Store.Size > free:
		return fmt.Errorf("%w: %s of memory are free, and the store would take up to %s: give a smaller size, or another place", ErrNoRoom, words.Size(free), words.Size(v.Store.Size))
	}
	return nil
}

// makeZram makes the device of a store in memory. The record knows it before it takes any memory: a
// kill right before that leaves an empty device that nobody misses.
func (s *Snapshot) makeZram(v *Volume) error {
	d, err := zram.Add()
	if err != nil {
		return err
	}
	v.Store.Path, v.Store.File = d.Path(), strconv.FormatUint(d.DiskSeq, 10)
	if err = s.write(); err != nil {
		return errors.Join(err, d.Remove())
	}
	return d.SetSize(v.Store.Size)
}

// removeZram removes the device of a store in memory, which was made in this boot. udev may look at it
// for a moment after its last user has gone.
func (v *Volume) removeZram() error {
	var d zram.Device
	if v.Store.File == "" {
		return nil // it was not made yet
	}
	_, err := fmt.Sscanf(v.Store.Path+" "+v.Store.File, "/dev/zram%d %d", &d.Number, &d.DiskSeq)
	for until := time.Now().Add(patience); err == nil; time.Sleep(patience / 100) {
		if err = d.Remove(); errors.Is(err, unix.EBUSY) && time.Now().Before(until) {
			err = nil
			continue
		}
		break
	}
	return err
}
