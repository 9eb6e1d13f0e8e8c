package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"syscall"
	"time"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/linux/dm"
	"tidemark/linux/dmhold"
	"tidemark/linux/dmsnap"
	"tidemark/track"
	"tidemark/track/bpf"
)

const (
	// patience is how long a device is tried to be removed that udev may have open.
	patience = 10 * time.Second
	// swapLimit bounds the time that an origin stands still to get its table back.
	swapLimit = time.Minute
)

// Destroy ends the snapshot: images, stores and their files are removed, and each device that has
// no other snapshot gets the table back that it had. An image that is in use is refused with
// ErrInUse, and nothing has changed then, unless force is set: then reading from it fails from now
// on, and it goes when its last user closes it.
func (s *Snapshot) Destroy(ctx context.Context, force bool) error {
	unlock, err := s.o.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.again(); err != nil {
		return err
	}
	ctl, err := dm.Open()
	if err != nil {
		return err
	}
	defer ctl.Close()
	if err := s.rolledBack(ctl); err != nil {
		return err
	}
	if !force {
		if err := s.unused(ctl); err != nil {
			return err
		}
	}
	if s.Up = s.Up && s.Incremental; !s.Up {
		if err := s.write(); err != nil && !errors.Is(err, syscall.ENOSPC) { // what takes the room may be the store
			return err
		}
	}
	err = s.takeApart(context.WithoutCancel(ctx), ctl, force)
	if ended, eerr := s.Ended(); err != nil && force && (ended || s.Persistent) && eerr == nil {
		err = errors.Join(fmt.Errorf("it is forgotten, but the files of its stores may be there still (chattr -i): %w", err), s.forget())
	}
	if err = errors.Join(err, s.letGo()); err != nil {
		return fmt.Errorf("snapshot: %s: %w", s.Name, err)
	}
	return nil
}

// rolledBack refuses when what the store holds is still to be put back.
func (s *Snapshot) rolledBack(ctl *dm.Control) error {
	for _, v := range s.Volumes {
		if !s.Rollback || !s.Up || v.Dropped != "" {
			continue
		}
		if left, err := s.left(ctl, v); err != nil || left > 0 {
			return errors.Join(err, fmt.Errorf("snapshot: %s: %s is being rolled back to it: it goes by itself when that is done", s.Name, v.Name))
		}
	}
	return nil
}

// unused refuses when an image is in use.
func (s *Snapshot) unused(ctl *dm.Control) error {
	for _, v := range s.Volumes {
		info, err := ctl.Info(s.image(v))
		if errors.Is(err, dm.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if info.OpenCount > 0 {
			return fmt.Errorf("snapshot: %s: %w", s.Image(v), ErrInUse)
		}
	}
	return nil
}

// takeApart removes whatever there is of a snapshot, and its record at last. It can be called
// again after an error, and after a crash.
func (s *Snapshot) takeApart(ctx context.Context, ctl *dm.Control, force bool) error {
	if err := s.takeVolumes(ctx, ctl, force); err != nil {
		return err
	}
	return errors.Join(s.release(ctx), s.forget())
}

// takeVolumes removes the devices and the stores.
func (s *Snapshot) takeVolumes(ctx context.Context, ctl *dm.Control, force bool) error {
	if s.Incremental && s.Up {
		return nil // it has none
	}
	ended, err := s.Ended()
	if err != nil {
		return err
	}
	errs := []error{s.unlink()}
	for _, v := range s.Volumes {
		var err error
		switch {
		case v.ofLVM():
			err = v.removeLVM(ctx)
		case !ended:
			err = s.takeDown(ctx, ctl, v, force)
		}
		if err == nil {
			err = s.tell(ctx, ctl, v)
		}
		if err == nil && !(ended && v.Store.Kind == Zram) { // memory has ended with the boot
			err = v.remove(ctl)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", v.Name, err))
		}
	}
	return errors.Join(errs...)
}

// tell counts the bytes of a store that is inside the origin as changed, where the origin is
// tracked: they changed without passing it. After a rollback all of the origin has.
func (s *Snapshot) tell(ctx context.Context, ctl *dm.Control, v *Volume) error {
	changed := v.Inside()
	if s.Rollback {
		changed = extent.NewSet(extent.Extent{Len: v.Size})
	}
	if changed.Empty() {
		return nil
	}
	if v.Era {
		if err := s.touch(ctl, v, changed); err != nil {
			return err
		}
	}
	source, err := v.open()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // what tracked it has gone with it
	}
	if err != nil {
		return err
	}
	defer source.Close()
	live, err := bpf.Attach(ctx, source, s.o.Track)
	if errors.Is(err, bpf.ErrNotTracked) || errors.Is(err, track.ErrMarkLost) || errors.Is(err, bpf.ErrNotSupported) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(live.MarkDirty(ctx, changed), live.Close())
}

// takeDown removes the devices of a volume. The volume gets its table back before what is below
// goes, unless another snapshot needs it.
func (s *Snapshot) takeDown(ctx context.Context, ctl *dm.Control, v *Volume, force bool) error {
	if err := v.goOn(ctl); err != nil {
		return err
	}
	if force {
		if err := cutOff(ctl, s.image(v)); err != nil {
			return err
		}
	}
	for _, name := range []string{s.image(v), s.copied(v)} {
		if err := gone(ctl, name); err != nil {
			return err
		}
	}
	others, err := s.others(ctl, v)
	if err != nil {
		return err
	}
	var wiped error
	if _, ours, err := own(ctl, s.cow(v)); s.Persistent && (ours || err != nil) { // nothing is to bring it up again
		wiped = errors.Join(err, s.wipe(ctl, v))
	}
	if !others {
		if err := s.giveBack(ctx, ctl, v); err != nil {
			return err
		}
	}
	if wiped != nil && v.Dropped == "" { // by which the record is enough
		return wiped
	}
	if v.Store.Kind == Block {
		_ = wipe(ctl, s.cow(v), v.Store) // a store that failed may fail again; the next one is refused there, and told how it is not
	}
	if err := gone(ctl, s.cow(v)); err != nil || others {
		return err
	}
	return errors.Join(gone(ctl, v.under()), gone(ctl, v.real()))
}

// gone removes a device of ours; that there is none, or one of somebody else's, is no error.
func gone(ctl *dm.Control, name string) error {
	if _, ours, err := own(ctl, name); !ours || err != nil {
		return err
	}
	err := ctl.Remove(name, dm.RemoveOptions{Patience: patience})
	if errors.Is(err, dm.ErrNotFound) {
		return nil
	}
	return err
}

// wipe zeroes the ends of what a store that is a device consists of, which may hold copies of the origin's
// superblocks: they would be taken for what the device holds. It does so through our device
// above, while that is there: by its path another device may be found.
func wipe(ctl *dm.Control, name string, store Store) error {
	info, ours, err := own(ctl, name)
	if !ours || err != nil {
		return err
	}
	d, err := block.Open(info.KernelPath(), block.Options{Write: true})
	if err != nil {
		return err
	}
	const end = 1 << 20 // bytes; all signatures of package mounts are nearer
	at := int64(0)
	for _, r := range store.parts() {
		n := min(r.Len, d.Size()-at)
		for _, off := range []int64{at, at + max(0, n-end)} {
			if n > 0 && err == nil {
				err = d.Zero(extent.Extent{Off: off, Len: min(end, n)})
			}
		}
		at += n
	}
	if err == nil {
		err = d.Sync()
	}
	return errors.Join(err, d.Close())
}

// own returns the state of a device, and whether it is ours.
func own(ctl *dm.Control, name string) (info dm.Info, ours bool, err error) {
	info, err = ctl.Info(name)
	if errors.Is(err, dm.ErrNotFound) {
		return info, false, nil
	}
	return info, err == nil && info.UUID == uuid(name), err
}

// cutOff takes what is below from an image that is in use, and has it go with its last user.
func cutOff(ctl *dm.Control, name string) error {
	info, ours, err := own(ctl, name)
	if !ours || err != nil || info.OpenCount == 0 {
		return err
	}
	table, _, err := ctl.Table(name)
	if err != nil {
		return err
	}
	if len(table) > 0 {
		last := table[len(table)-1]
		if _, err := ctl.Load(name, []dm.Target{{Len: last.Start + last.Len, Type: "error"}}, dm.LoadOptions{ReadOnly: info.ReadOnly}); err != nil {
			return err
		}
		if _, err := ctl.Suspend(name, dm.SuspendOptions{NoLockFS: true, NoFlush: true}); err != nil {
			return err
		}
		if _, err := ctl.ResumeHidden(name); err != nil {
			return err
		}
	}
	// Its name is free for another one; what is left of it goes with its last user.
	to := fmt.Sprintf("%s+%d", name, time.Now().UnixNano())
	if err := ctl.Rename(name, to); err != nil {
		return err
	}
	return ctl.Remove(to, dm.RemoveOptions{Deferred: true})
}

// others reports whether something else needs the device below a volume: another snapshot, or the
// rollback to one, which may wait with the volume shut. Of snapshots the kernel knows, whatever folder
// a record is in.
func (s *Snapshot) others(ctl *dm.Control, v *Volume) (bool, error) {
	real, ours, err := own(ctl, v.real())
	if !ours || err != nil {
		return false, err
	}
	cow, _, err := own(ctl, s.cow(v))
	if err != nil {
		return false, err
	}
	list, _, err := dmsnap.List(ctl)
	if err != nil || slices.ContainsFunc(list, func(o dmsnap.Snapshot) bool {
		return o.Origin == real.Dev() && o.Store != cow.Dev()
	}) {
		return err == nil, err
	}
	if kind, err := s.tableOf(ctl, v); err != nil || kind != shut {
		return false, err
	}
	early, err := listIn(s.o, EarlyDir)
	return slices.ContainsFunc(early, func(o *Snapshot) bool {
		return o.Name != s.Name && o.Up && o.Rollback && slices.ContainsFunc(o.Volumes, func(w *Volume) bool { return w.Name == v.Name })
	}), err
}

// goOn ends a swap that did not come to be, by a process that was killed together with the holder of
// the volume.
func (v *Volume) goOn(ctl *dm.Control) error {
	info, err := ctl.Info(v.Name)
	if errors.Is(err, dm.ErrNotFound) {
		return nil
	}
	if err == nil && info.InactiveTable {
		info, err = ctl.Clear(v.Name)
	}
	if err == nil && info.Suspended {
		_, err = ctl.Resume(v.Name)
	}
	return err
}

// giveBack puts the table of a volume back that it had before its first snapshot, which is that
// of the device below.
func (s *Snapshot) giveBack(ctx context.Context, ctl *dm.Control, v *Volume) error {
	kind, err := s.tableOf(ctl, v)
	if err != nil || kind == absent || kind == plain {
		return err
	}
	if v.Era {
		return s.putBackEra(ctl, v)
	}
	info, err := ctl.Info(v.Name)
	if err != nil {
		return err
	}
	return v.putBack(ctx, ctl, info)
}

// putBack gives the volume the table of the device below, while it is in use.
func (v *Volume) putBack(ctx context.Context, ctl *dm.Control, info dm.Info) error {
	table, real, err := ctl.Table(v.real())
	if err != nil {
		return err
	}
	if _, err := ctl.Load(v.Name, table, dm.LoadOptions{ReadOnly: real.ReadOnly}); err != nil {
		return err
	}
	_, err = dmhold.Hold(ctx, dmhold.Plan{
		Devices: []dmhold.Device{{Name: v.Name, Dev: info.Dev(), NoLockFS: true, Swap: true}}, Limit: swapLimit,
	}, nil)
	return err
}
