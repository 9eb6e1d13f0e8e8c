package snapshot

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"tidemark/linux/dm"
	"tidemark/linux/lvm"
	"tidemark/words"
)

// lvmTag is the tag of the logical volumes that are snapshots of ours.
const lvmTag = "tidemark.snapshot"

// ofLVM reports whether lvm2 made the snapshot. lvm2 knows of such a one, and it outlives the boot.
func (s *Snapshot) ofLVM() bool { return slices.ContainsFunc(s.Volumes, (*Volume).ofLVM) }

func (v *Volume) ofLVM() bool { return v.Store.Kind == LVM }

// planLVM judges a request for a snapshot of a logical volume with a store in its group.
func (s *Snapshot) planLVM(ctx context.Context, ctl *dm.Control, req Request) error {
	if req.Persistent {
		return fmt.Errorf("snapshot: %w: what lvm2 makes lasts by itself, and \"lvconvert --merge\" rolls back to it", ErrNotKept)
	}
	if len(req.Devices) > 1 || req.Transient || req.Track || req.Instant != nil {
		return fmt.Errorf("snapshot: %w: lvm2 makes snapshots of one volume at a time, at an instant of its own", ErrUnfit)
	}
	d := req.Devices[0]
	lv, err := lvm.Find(ctx, d.Path)
	if errors.Is(err, lvm.ErrNotFound) {
		return fmt.Errorf("snapshot: %s: %w: the store %q is for logical volumes: %w", d.Path, ErrStore, LVM, err)
	}
	if err != nil {
		return err
	}
	if lv.Thin() || lv.IsPool() || lv.Snapshot() || !lv.Active {
		return fmt.Errorf("snapshot: %s: %w: it is not active, or thin, or a snapshot; \"lvcreate --snapshot\" makes snapshots of thin volumes, without a store", lv.FullName(), ErrUnfit)
	}
	info, err := ctl.Info(lv.Device())
	if err != nil {
		return err
	}
	size := d.Size
	if size == 0 {
		size = max(lv.Size/defaultShare, MinStore)
	}
	if err := roomInLVM(ctx, lv, size); err != nil {
		return fmt.Errorf("snapshot: %s: %w", lv.FullName(), err)
	}
	if _, err := lvm.Find(ctx, lv.VG+"/"+s.Name); !errors.Is(err, lvm.ErrNotFound) {
		return errors.Join(err, fmt.Errorf("snapshot: %w: there is a volume %s/%s", ErrExists, lv.VG, s.Name))
	}
	s.Volumes = []*Volume{{Name: info.Name, Dev: info.Dev(), Size: lv.Size, Store: Store{Kind: LVM, Path: filepath.Join("/dev", lv.VG, s.Name), Size: size}}}
	return nil
}

// roomInLVM refuses what a volume group has no room for. lvm2 looks again.
func roomInLVM(ctx context.Context, lv lvm.Volume, size int64) error {
	free, err := lvm.Free(ctx, lv)
	if err == nil && size > free {
		err = fmt.Errorf("%w: the group %s has %s free, and %s are needed: give a smaller size, or the group another physical volume (vgextend)",
			ErrNoRoom, lv.VG, words.Size(free), words.Size(size))
	}
	return err
}

// makeLVM has lvm2 make the snapshot that was planned.
func (s *Snapshot) makeLVM(ctx context.Context, ctl *dm.Control) error {
	v := s.Volumes[0]
	lv, err := lvm.Find(ctx, "/dev/mapper/"+v.Name)
	if err != nil {
		return err
	}
	err = lvm.CreateSnapshot(ctx, lv, s.Name, lvm.SnapshotOptions{Size: v.Store.Size, Chunk: s.Chunk, Writable: s.Writable, Tag: lvmTag})
	if err != nil {
		return err
	}
	u, err := s.usage(ctl, v)
	v.Store.Size = u.Total // in whole extents of the group
	return err
}

// inLVM returns the logical volume that the snapshot is; false when it is gone, or not ours.
func (v *Volume) inLVM(ctx context.Context) (lvm.Volume, bool, error) {
	lv, err := lvm.Find(ctx, strings.TrimPrefix(v.Store.Path, "/dev/"))
	if errors.Is(err, lvm.ErrNotFound) {
		return lv, false, nil
	}
	return lv, slices.Contains(lv.Tags, lvmTag), err
}

// removeLVM has lvm2 remove the snapshot. lvm2 refuses when it is in use.
func (v *Volume) removeLVM(ctx context.Context) error {
	lv, ours, err := v.inLVM(ctx)
	if err != nil || !ours {
		return err
	}
	return lvm.Remove(ctx, lv)
}

// growLVM has lvm2 make the store larger, to size bytes.
func (s *Snapshot) growLVM(ctx context.Context, ctl *dm.Control, v *Volume, size int64) error {
	lv, ours, err := v.inLVM(ctx)
	if err != nil {
		return err
	}
	if !ours {
		return fmt.Errorf("%w: %s", ErrNotFound, v.Store.Path)
	}
	if err := roomInLVM(ctx, lv, size-v.Store.Size); err != nil {
		return err
	}
	if err := lvm.Extend(ctx, lv, size); err != nil {
		return err
	}
	u, err := s.usage(ctl, v)
	if err != nil {
		return err
	}
	v.Store.Size = u.Total
	return s.write()
}
