package bpf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"tidemark/block"
	"tidemark/linux/bpf"
	"tidemark/track/history"
)

// Stop ends the tracking of the disk that the device is, or is a part of; all its marks
// are lost. It also removes what starts that were killed have left in the kernel, of
// any disk, and the programs when no disk is tracked any more. A disk that is gone can
// be named as it was. The error wraps ErrNotTracked when there was nothing to remove.
func Stop(ctx context.Context, device string, opts Options) error {
	pl := opts.paths()
	id, err := block.Identify(device)
	if errors.Is(err, fs.ErrNotExist) {
		id, err = identifyGone(pl, device)
	}
	if err != nil {
		return err
	}
	unlock, err := pl.lock(ctx, id.Disk)
	if errors.Is(err, history.ErrUnwritable) {
		// No process holds a lock that is not there and cannot be made.
		unlock, err = func() {}, nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Stat(pl.record(id.Disk)); errors.Is(err, fs.ErrNotExist) {
		if left, err := pl.left(); len(left) == 0 {
			return errors.Join(err, fmt.Errorf("track: stop: %s: %w", device, ErrNotTracked))
		}
	}
	return stop(pl, id)
}

// identifyGone finds the record of a disk that is no longer there.
func identifyGone(pl paths, device string) (block.Identity, error) {
	name := strings.ReplaceAll(strings.TrimPrefix(device, "/dev/"), "/", "!")
	recs, err := records(pl)
	if err != nil {
		return block.Identity{}, err
	}
	for _, r := range recs {
		if r.Disk == name {
			return block.Identity{Disk: r.Disk, DiskMajor: r.Major, DiskMinor: r.Minor}, nil
		}
	}
	return block.Identity{}, fmt.Errorf("track: stop: %s: no such device, and %w", device, ErrNotTracked)
}

func stop(pl paths, id block.Identity) error {
	fac, err := bpf.Load(pl.pins)
	switch {
	case errors.Is(err, bpf.ErrNotInstalled), errors.Is(err, bpf.ErrBroken):
		return errors.Join(remove(pl.record(id.Disk)), history.Remove(pl.disk(id.Disk)), bpf.Remove(pl.pins))
	case err != nil:
		return err
	}
	s := &session{pl: pl, source: id, fac: fac}
	return errors.Join(s.forget(), s.removeUnused(), s.close())
}

// Leftovers returns the paths of what starts that were killed have left pinned in the
// kernel, and belongs to no tracked disk. Stop of any device removes it.
func Leftovers(ctx context.Context, opts Options) ([]string, error) {
	pl := opts.paths()
	// A start that is under way holds the lock.
	unlock, err := history.Lock(ctx, pl.lockFile())
	if err == nil {
		defer unlock()
	} else if !errors.Is(err, history.ErrUnwritable) {
		return nil, err
	}
	return pl.left()
}

func (p paths) left() ([]string, error) {
	recs, err := records(p)
	if err != nil {
		return nil, err
	}
	living := map[string]bool{}
	for _, r := range recs {
		living[r.Generation] = true
	}
	pins, err := os.ReadDir(p.pins)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("track: list bitmaps: %w", err)
	}
	var left []string
	for _, pin := range pins {
		gen, _, isBitmap := parsePin(pin.Name())
		if len(recs) == 0 || isBitmap && !living[gen] {
			left = append(left, filepath.Join(p.pins, pin.Name()))
		}
	}
	return left, nil
}

// forget removes what generations of the disk left: the record, the entry in the
// kernel, the bitmaps of no living record, the files. It goes on after an error. The
// locks must be held.
func (s *session) forget() error {
	return errors.Join(
		remove(s.pl.record(s.source.Disk)),
		s.fac.Drop(bpf.DevT(s.source.DiskMajor, s.source.DiskMinor)),
		sweepKernel(s.pl, s.fac),
		history.Remove(s.dir()),
	)
}

// remove deletes a file. One that is not there is no error, on a read-only filesystem
// either.
func remove(path string) error {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := os.Remove(path); err != nil {
		return history.Unwritable(err)
	}
	return nil
}

// removeUnused removes the programs when no disk is tracked. The machine's lock must be
// held.
func (s *session) removeUnused() error {
	disks, err := s.fac.Disks()
	if err != nil || len(disks) > 0 {
		return err
	}
	return bpf.Remove(s.pl.pins)
}

// sweepKernel removes entries and bitmaps that belong to no record. The machine's lock
// must be held.
func sweepKernel(pl paths, fac *bpf.Facility) error {
	recs, err := records(pl)
	if err != nil {
		return err
	}
	living := map[uint32]bool{}
	for _, r := range recs {
		living[r.dev()] = true
	}
	disks, err := fac.Disks()
	if err != nil {
		return err
	}
	for dev := range disks {
		if !living[dev] {
			if err := fac.Drop(dev); err != nil {
				return err
			}
		}
	}
	if err := fac.Sweep(); err != nil {
		return err
	}
	left, err := pl.left()
	if err != nil {
		return err
	}
	for _, path := range left {
		if _, _, isBitmap := parsePin(filepath.Base(path)); isBitmap {
			if err := bpf.Unpin(path); err != nil {
				return err
			}
		}
	}
	return nil
}
