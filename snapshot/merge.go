package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/format/snapstore"
	"tidemark/linux/dm"
	"tidemark/linux/dmsnap"
)

// merge has the kernel put back a volume whose snapshot is there, and which nobody uses.
func (s *Snapshot) merge(ctl *dm.Control, v *Volume) error {
	if err := gone(ctl, s.image(v)); err != nil {
		return err
	}
	if _, err := ctl.Load(v.Name, s.table(v, "snapshot-merge"), dm.LoadOptions{}); err != nil {
		return err
	}
	// The kernel takes what the snapshot knows over from it, which stands still for that.
	if _, there, err := own(ctl, s.copied(v)); err != nil {
		return err
	} else if there {
		if _, err := ctl.Suspend(s.copied(v), dm.SuspendOptions{NoLockFS: true}); err != nil {
			return err
		}
	}
	if _, err := ctl.Resume(v.Name); err != nil {
		return err
	}
	return gone(ctl, s.copied(v))
}

// resume takes a rollback of one volume up after a boot, or a crash before its merge.
func (s *Snapshot) resume(ctx context.Context, ctl *dm.Control, v *Volume, kind tableKind, wait time.Duration) ([]string, error) {
	switch kind {
	case absent, merging:
		return nil, nil
	case plain:
		if done, err := s.emptied(ctx, v, wait); done || err != nil {
			return nil, err
		}
		d, err := block.Open("/dev/mapper/"+v.Name, block.Options{Exclusive: true})
		if errors.Is(err, unix.EBUSY) {
			err = s.drop(context.WithoutCancel(ctx), ctl, v, "the rollback to it was cut off, and the disk is in use without it: what is on it is damaged")
			return []string{s.dropped(v)}, err
		}
		if err != nil {
			return nil, err
		}
		if err := d.Close(); err != nil {
			return nil, err
		}
	}
	if err := v.goOn(ctl); err != nil {
		return nil, err
	}
	// The merge may have been cut off when the snapshot stood still for it.
	if info, there, err := own(ctl, s.copied(v)); err != nil {
		return nil, err
	} else if there && info.Suspended {
		if _, err := ctl.ResumeHidden(s.copied(v)); err != nil {
			return nil, err
		}
	}
	err := s.raise(ctl, v)
	if err == nil {
		err = s.merge(ctl, v)
	}
	if err != nil {
		return nil, fmt.Errorf("the rollback cannot go on, and until it does the disk is a mixture: %w", err)
	}
	return []string{fmt.Sprintf("the rollback of %s to %s goes on", v.Name, s.Name)}, nil
}

// emptied reports whether the store of a volume that has its own table was put back wholly.
func (s *Snapshot) emptied(ctx context.Context, v *Volume, wait time.Duration) (bool, error) {
	store, d, err := s.openStore(ctx, v, wait)
	if errors.Is(err, snapstore.ErrNotStore) {
		return true, nil // its header was taken from it after that
	}
	if err != nil {
		return false, err
	}
	defer d.Close()
	for _, err := range store.Exceptions() {
		return false, err
	}
	return true, nil
}

// left returns how much of a volume has still to be put back, in bytes.
func (s *Snapshot) left(ctl *dm.Control, v *Volume) (int64, error) {
	kind, err := s.tableOf(ctl, v)
	switch {
	case err != nil:
		return 0, err
	case kind == plain:
		return 0, nil
	case kind != merging:
		return 0, errors.New("its rollback was cut off: \"tidemark snapshot repair\" takes it up")
	}
	found, err := dmsnap.Get(ctl, v.Name)
	if err != nil {
		return 0, err
	}
	u, err := found.Usage(ctl)
	if err == nil && u.State != dmsnap.Valid {
		err = fmt.Errorf("the rollback failed: the kernel says: %s", u.State)
	}
	return u.Used - u.MetadataPortion, err
}

// WaitRolledBack waits until all is copied back, gives the volumes their own tables, and removes
// what is left of the snapshot. progress, which may be nil, gets how many bytes are left. When the
// wait ends early the kernel goes on, and Repair does the rest. It returns what is left to be done.
func (s *Snapshot) WaitRolledBack(ctx context.Context, progress func(left int64)) (rest string, err error) {
	ctl, err := dm.Open()
	if err != nil {
		return "", err
	}
	defer ctl.Close()
	for {
		sum := int64(0)
		for _, v := range s.Volumes {
			n, err := s.left(ctl, v)
			if err != nil {
				return "", fmt.Errorf("snapshot: %s: %s: %w", s.Name, v.Name, err)
			}
			sum += n
		}
		if progress != nil {
			progress(sum)
		}
		if sum == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-time.After(200 * time.Millisecond):
		}
	}
	unlock, err := s.o.lock(ctx)
	if err != nil {
		return "", err
	}
	defer unlock()
	now, err := Find(s.o, s.Name)
	if errors.Is(err, ErrNotFound) {
		return "", nil // another process was faster
	}
	if err == nil {
		*s = *now
		err = s.finish(context.WithoutCancel(ctx), ctl)
	}
	if errors.Is(err, ErrStore) { // not mounted
		return "the file of the store is removed when the filesystem is mounted, by the next command or boot", nil
	}
	return "", err
}

// finish gives the volumes their own tables, and removes the rest.
func (s *Snapshot) finish(ctx context.Context, ctl *dm.Control) error {
	for _, v := range s.Volumes {
		kind, err := s.tableOf(ctl, v)
		if err == nil && kind == merging {
			var info dm.Info
			if info, err = ctl.Info(v.Name); err == nil {
				err = v.putBack(ctx, ctl, info)
			}
		}
		if err != nil {
			return fmt.Errorf("snapshot: %s: %s: %w", s.Name, v.Name, err)
		}
	}
	s.Up = false
	if err := s.write(); err != nil {
		return err
	}
	return s.takeApart(ctx, ctl, false)
}

// carryOn takes a rollback up, and ends it when all is put back.
func (s *Snapshot) carryOn(ctx context.Context, ctl *dm.Control) (done []string, err error) {
	left := int64(0)
	for _, v := range s.Volumes {
		if v.Dropped != "" {
			return nil, nil
		}
		told, err := s.assemble(ctx, ctl, v, 0)
		if done = append(done, told...); err != nil {
			return done, err
		}
		n, err := s.left(ctl, v)
		if err != nil {
			return done, fmt.Errorf("%s: %w", v.Name, err)
		}
		left += n
	}
	if left == 0 && !slices.ContainsFunc(s.Volumes, func(v *Volume) bool { return v.Dropped != "" }) {
		if err := s.finish(ctx, ctl); err != nil {
			return done, err
		}
		return append(done, fmt.Sprintf("the rollback to %s is done", s.Name)), nil
	}
	return done, nil
}
