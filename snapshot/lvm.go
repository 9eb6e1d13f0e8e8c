package snapshot

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"tidemark/linux/dm"
	"tidemark/linux/lvm"
	"tidemark/view"
	"tidemark/words"
)

// lvmTag is the tag of the logical volumes that are snapshots of ours.
const lvmTag = "tidemark.snapshot"

// ofLVM reports whether lvm2 made the snapshot. lvm2 knows of such a one, and it outlives the boot.
func (s *Snapshot) ofLVM() bool { return slices.ContainsFunc(s.Volumes, (*Volume).ofLVM) }

func (v *Volume) ofLVM() bool { return v.Store.Kind == LVM }

// planLVM judges a request for snapshots of logical volumes with stores in their groups.
func (s *Snapshot) planLVM(ctx context.Context, ctl *dm.Control, req Request) error {
	if req.Persistent {
		return fmt.Errorf("snapshot: %w: what lvm2 makes lasts by itself, and \"lvconvert --merge\" rolls back to it", ErrNotKept)
	}
	if req.Transient || req.Track || req.Instant != nil {
		return fmt.Errorf("snapshot: %w: lvm2 makes snapshots at an instant of its own", ErrUnfit)
	}
	needed := map[string]int64{} // bytes, by group
	for _, d := range req.Devices {
		if d.Store != LVM {
			return fmt.Errorf("snapshot: %s: %w: lvm2 makes the snapshots of all devices, or of none: give each the store %q, or take two snapshots", d.Path, ErrUnfit, LVM)
		}
		v, lv, err := s.planVolume(ctx, ctl, d, len(req.Devices) > 1)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(s.Volumes, func(o *Volume) bool { return o.Dev == v.Dev }) {
			return fmt.Errorf("snapshot: %s: it is given twice", d.Path)
		}
		needed[lv.VG] += v.Store.Size
		if err := roomInLVM(ctx, lv, needed[lv.VG]); err != nil {
			return fmt.Errorf("snapshot: %s: %w", lv.FullName(), err)
		}
		s.Volumes = append(s.Volumes, v)
	}
	if len(s.Volumes) == 1 {
		return nil
	}
	sources, release, err := s.openAll((*Volume).open)
	if err != nil {
		return err
	}
	defer release()
	why, err := view.LVMTogether(sources)
	if err == nil && why != "" {
		err = fmt.Errorf("snapshot: %w: several logical volumes, of one instant: %s: unmount them, or take a snapshot of each by itself, or copy them with \"tidemark mirror --view dm\"", ErrUnfit, why)
	}
	return err
}

// planVolume judges one logical volume. Of several, each snapshot has the name of its volume, too.
func (s *Snapshot) planVolume(ctx context.Context, ctl *dm.Control, d Device, several bool) (*Volume, lvm.Volume, error) {
	lv, err := lvm.Find(ctx, d.Path)
	if errors.Is(err, lvm.ErrNotFound) {
		err = fmt.Errorf("snapshot: %s: %w: the store %q is for logical volumes: %w", d.Path, ErrStore, LVM, err)
	}
	if err != nil {
		return nil, lv, err
	}
	if lv.Thin() || lv.IsPool() || lv.Snapshot() || !lv.Active {
		return nil, lv, fmt.Errorf("snapshot: %s: %w: it is not active, or thin, or a snapshot; \"lvcreate --snapshot\" makes snapshots of thin volumes, without a store", lv.FullName(), ErrUnfit)
	}
	info, err := ctl.Info(lv.Device())
	if err != nil {
		return nil, lv, err
	}
	size, name := d.Size, s.Name
	if size == 0 {
		size = max(lv.Size/defaultShare, MinStore)
	}
	if several {
		name = lv.Name + "+" + s.Name
	}
	if _, err := lvm.Find(ctx, lv.VG+"/"+name); !errors.Is(err, lvm.ErrNotFound) {
		return nil, lv, errors.Join(err, fmt.Errorf("snapshot: %w: there is a volume %s/%s", ErrExists, lv.VG, name))
	}
	return &Volume{Name: info.Name, Dev: info.Dev(), Size: lv.Size, Store: Store{Kind: LVM, Path: filepath.Join("/dev", lv.VG, name), Size: size}}, lv, nil
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

// makeLVM has lvm2 make the snapshots that were planned. It suspends one volume after the other, so
// several of one instant have their filesystems frozen by us from the first to the last.
func (s *Snapshot) makeLVM(ctx context.Context, ctl *dm.Control, limit time.Duration) error {
	var lvs []lvm.Volume
	for _, v := range s.Volumes {
		lv, err := lvm.Find(ctx, v.path())
		if err != nil {
			return err
		}
		lvs = append(lvs, lv)
	}
	do := func(ctx context.Context, _ bool) error {
		for i, v := range s.Volumes {
			err := lvm.CreateSnapshot(ctx, lvs[i], filepath.Base(v.Store.Path), lvm.SnapshotOptions{Size: v.Store.Size, Chunk: s.Chunk, Writable: s.Writable, Tag: lvmTag})
			if err != nil {
				return err
			}
		}
		return nil
	}
	if len(lvs) == 1 {
		if err := do(ctx, false); err != nil {
			return err
		}
	} else if err := s.together(ctx, limit, do); err != nil {
		return err
	}
	for _, v := range s.Volumes {
		u, err := s.usage(ctl, v)
		if err != nil {
			return err
		}
		v.Store.Size = u.Total // in whole extents of the group
	}
	return nil
}

// together calls do while nobody can change what lies on the volumes.
func (s *Snapshot) together(ctx context.Context, limit time.Duration, do func(context.Context, bool) error) error {
	sources, release, err := s.openAll((*Volume).open)
	if err != nil {
		return err
	}
	defer release()
	o := view.Options{Sources: sources, MaxFreeze: limit}
	if err := view.Freeze(o).Flush(ctx); err != nil {
		return err
	}
	report, err := view.Together(ctx, o, do)
	s.Frozen += report.Frozen
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
