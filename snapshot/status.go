package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/linux/dm"
	"tidemark/linux/dmhold"
	"tidemark/linux/dmsnap"
	"tidemark/linux/loop"
	"tidemark/linux/sysfs"
	"tidemark/words"
)

// Status is how a snapshot is.
type Status struct {
	*Snapshot
	Lost    string         `json:"lost,omitempty"` // why its images cannot be read any more
	Volumes []VolumeStatus `json:"volumes"`
}

// VolumeStatus is how one volume of a snapshot is.
type VolumeStatus struct {
	*Volume
	Image string `json:"image"` // "" of an incremental one
	Lost  string `json:"lost,omitempty"`
	Used  int64  `json:"used"`  // bytes of the store
	Total int64  `json:"total"` // bytes, now
	// Left is what a rollback has still to put back, in bytes.
	Left int64 `json:"left,omitempty"`
}

// Status asks the kernel how the snapshot is.
func (s *Snapshot) Status() (st Status, err error) {
	st.Snapshot = s
	ended, err := s.Ended()
	switch {
	case err != nil:
		return st, err
	case ended && !s.Incremental:
		st.Lost = "the machine was booted"
	case !s.Up:
		st.Lost = "a command was cut off, or is under way"
	}
	ctl, err := dm.Open()
	if err != nil {
		return st, err
	}
	defer ctl.Close()
	for _, v := range s.Volumes {
		vs := VolumeStatus{Volume: v, Image: s.Image(v), Lost: st.Lost, Total: v.Store.Size}
		if st.Lost == "" {
			if err := s.look(ctl, v, &vs); err != nil {
				return st, fmt.Errorf("snapshot: %s: %s: %w", s.Name, v.Name, err)
			}
		}
		st.Volumes = append(st.Volumes, vs)
	}
	for _, v := range st.Volumes {
		if st.Lost == "" && v.Lost != "" {
			st.Lost = v.Name + ": " + v.Lost
		}
	}
	return st, nil
}

// look fills in what the kernel says of a volume.
func (s *Snapshot) look(ctl *dm.Control, v *Volume, st *VolumeStatus) error {
	if v.Dropped != "" {
		st.Lost = v.Dropped
		return nil
	}
	if s.Rollback {
		left, err := s.left(ctl, v)
		if st.Left = left; err != nil {
			st.Lost = err.Error()
		}
		return nil
	}
	if s.Incremental {
		return s.lookIncremental(v, st)
	}
	had, err := v.snapshotted(ctl)
	if err != nil && !errors.Is(err, dm.ErrNotFound) {
		return err
	}
	if s.Persistent && errors.Is(err, dm.ErrNotFound) {
		st.Lost = "its disk is not there, with which it would come up"
		return nil
	}
	if !had && !v.ofLVM() {
		st.Lost = "another program has put another table into the origin: writes may have gone past the snapshot"
		return nil
	}
	u, err := s.usage(ctl, v)
	switch {
	case errors.Is(err, dm.ErrNotFound):
		st.Lost = "another program has removed it, or has its device down"
		return nil
	case err != nil:
		return err
	case u.State == dmsnap.Valid:
		st.Used, st.Total = u.Used, u.Total
	case u.State == dmsnap.Invalid:
		st.Lost = "its store was full, or failed"
	default:
		st.Lost = "the kernel says: " + string(u.State)
	}
	return nil
}

// Grow makes the store of a volume larger while it is in use, to size bytes. It is for a store that
// is a file: a device is as large as it is. One inside gets only blocks that belonged to nobody at the
// instant; where they are less than size asks for, the error wraps ErrNoRoom, and it has got those.
// The error wraps ErrStore or ErrNoRoom.
func (s *Snapshot) Grow(ctx context.Context, v *Volume, size int64) error {
	unlock, err := s.o.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.again(); err != nil {
		return err
	}
	i := slices.IndexFunc(s.Volumes, func(w *Volume) bool { return w.Name == v.Name })
	if i < 0 {
		return fmt.Errorf("snapshot: %s: %w: it is not one of %s", s.Name, ErrNotFound, v.Name)
	}
	*v = *s.Volumes[i]
	s.Volumes[i] = v
	if err := s.grow(ctx, v, size); err != nil {
		return fmt.Errorf("snapshot: %s: grow the store of %s: %w", s.Name, v.Name, err)
	}
	return nil
}

func (s *Snapshot) grow(ctx context.Context, v *Volume, size int64) error {
	size = (size + s.Chunk - 1) / s.Chunk * s.Chunk
	switch {
	case s.Incremental:
		return fmt.Errorf("%w: it is incremental, and has no store", ErrMode)
	case v.Store.Kind == Block || v.Store.Kind == Zram:
		return fmt.Errorf("%w: a device does not grow; only a store in a file does", ErrStore)
	case size <= v.Store.Size && v.Store.Kind != Inside:
		return fmt.Errorf("%w: it has %s already", ErrStore, words.Size(v.Store.Size))
	}
	ctl, err := dm.Open()
	if err != nil {
		return err
	}
	defer ctl.Close()
	if v.ofLVM() {
		return s.growLVM(ctx, ctl, v, size)
	}
	if v.Store.Kind == Inside {
		return s.growInside(ctx, ctl, v, size)
	}
	f, err := os.OpenFile(v.Store.Path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if ours, err := v.Store.is(f); !ours {
		return errors.Join(err, fmt.Errorf("%w: %s is another file by now", ErrStore, v.Store.Path))
	}
	err = unix.Fallocate(int(f.Fd()), 0, v.Store.Size, size-v.Store.Size)
	if errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("%w: %s: %w", ErrNoRoom, v.Store.Path, err)
	}
	if err != nil {
		return fmt.Errorf("allocate %s: %w", v.Store.Path, err)
	}
	table, info, err := ctl.Table(s.cow(v))
	if err != nil {
		return err
	}
	number, _, _ := strings.Cut(table[0].Params, " ")
	dev, err := sysfs.ParseDev(number)
	if err != nil {
		return err
	}
	if err := loop.Refresh(dev); err != nil {
		return err
	}
	if uint64(size/dm.SectorSize) <= table[0].Len { // it has been, by one that was cut off
		v.Store.Size = int64(table[0].Len) * dm.SectorSize
		return s.write()
	}
	table[0].Len = uint64(size / dm.SectorSize)
	if err := swap(ctx, ctl, info, table[:1]); err != nil {
		return err
	}
	v.Store.Size = size
	return s.write()
}

// swap gives a device of ours another table while it is in use.
func swap(ctx context.Context, ctl *dm.Control, info dm.Info, table []dm.Target) error {
	if _, err := ctl.Load(info.Name, table, dm.LoadOptions{ReadOnly: info.ReadOnly}); err != nil {
		return err
	}
	_, err := dmhold.Hold(ctx, dmhold.Plan{
		Devices: []dmhold.Device{{Name: info.Name, Dev: info.Dev(), NoLockFS: true, Hidden: true, Swap: true}}, Limit: swapLimit,
	}, nil)
	return err
}

// Watch waits until a volume of the snapshot has had an event, as that it was lost, or until the
// time is over.
func (s *Snapshot) Watch(ctx context.Context, every time.Duration) error {
	ctl, err := dm.Open()
	if err != nil {
		return err
	}
	defer ctl.Close()
	ctx, cancel := context.WithTimeout(ctx, every)
	defer cancel()
	woken := make(chan error, len(s.Volumes))
	waiting := 0
	for _, v := range s.Volumes {
		info, err := ctl.Info(s.copied(v))
		if err != nil {
			return nil // it is over
		}
		waiting++
		go func() {
			_, err := ctl.Wait(ctx, info.Name, info.EventNr)
			woken <- err
		}()
	}
	err = <-woken
	cancel()
	for range waiting - 1 {
		<-woken
	}
	if err != nil && !errors.Is(err, dm.ErrNotFound) && ctx.Err() == nil {
		return err
	}
	return nil
}
