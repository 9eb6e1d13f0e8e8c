package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

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

// resume takes a rollback of one volume up after a boot, or a crash before its merge. Until then the
// volume is a mixture of old and new, which nobody must use: whatever fails, it refuses everything.
func (s *Snapshot) resume(ctx context.Context, ctl *dm.Control, v *Volume, kind tableKind, wait time.Duration) ([]string, error) {
	if kind == merging {
		return nil, nil
	}
	if err := v.goOn(ctl); err != nil {
		return nil, err
	}
	d, err := v.claim()
	if kind == plain && errors.Is(err, unix.EBUSY) {
		// It must not go on over what was written since. Its store is kept, for whoever can use it.
		v.Dropped = "the rollback to it was cut off, and the disk is in use without it: what is on it is damaged"
		return []string{s.dropped(v)}, s.write()
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if err = s.shut(ctl, v, d); err == nil {
		if err = s.stored(ctx, ctl, v, wait); err == nil {
			err = s.startMerge(ctl, v)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("the rollback cannot go on, and the disk, which is a mixture of old and new, refuses everything until it does (\"tidemark snapshot repair\"): %w", err)
	}
	return []string{fmt.Sprintf("the rollback of %s to %s goes on", v.Name, s.Name)}, nil
}

// startMerge has the merge of a volume that is shut begin, of whose devices some may be there.
func (s *Snapshot) startMerge(ctl *dm.Control, v *Volume) error {
	// The merge may have been cut off when the snapshot stood still for it.
	info, there, err := own(ctl, s.copied(v))
	if err == nil && there && info.Suspended {
		_, err = ctl.ResumeHidden(s.copied(v))
	}
	if err == nil {
		err = s.raise(ctl, v)
	}
	if err == nil {
		err = s.merge(ctl, v)
	}
	return err
}

// left returns how much of a volume has still to be put back, in bytes.
func (s *Snapshot) left(ctl *dm.Control, v *Volume) (int64, error) {
	kind, err := s.tableOf(ctl, v)
	switch {
	case err != nil:
		return 0, err
	case v.Dropped != "":
		return 0, errors.New(v.Dropped)
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

// allLeft sums up what is left of all volumes.
func (s *Snapshot) allLeft(ctl *dm.Control) (sum int64, err error) {
	for _, v := range s.Volumes {
		n, err := s.left(ctl, v)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", v.Name, err)
		}
		sum += n
	}
	return sum, nil
}

// restOfRollback is what is left of one whose filesystem is not mounted.
const restOfRollback = "the file of the store is removed when the filesystem is mounted, by the next command or boot"

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
		sum, err := s.allLeft(ctl)
		if err != nil {
			if now, ferr := Find(s.o, s.Name); errors.Is(ferr, ErrNotFound) || ferr == nil && !now.Up {
				return "", nil // another process was faster
			}
			return "", fmt.Errorf("snapshot: %s: %w", s.Name, err)
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
		return restOfRollback, nil
	}
	return "", err
}

// finish gives the volumes their own tables, and removes the rest, when nothing is left.
func (s *Snapshot) finish(ctx context.Context, ctl *dm.Control) error {
	if left, err := s.allLeft(ctl); s.Up && (err != nil || left > 0) {
		return errors.Join(err, fmt.Errorf("snapshot: %s: it is still being rolled back to", s.Name))
	}
	s.Up = false // from here on no boot takes it up
	if err := s.write(); err != nil {
		return err
	}
	return s.takeApart(ctx, ctl, false)
}

// carryOn takes a rollback up, and ends it when all is put back.
func (s *Snapshot) carryOn(ctx context.Context, ctl *dm.Control) (done []string, err error) {
	for _, v := range s.Volumes {
		told, aerr := s.assemble(ctx, ctl, v, 0)
		done, err = append(done, told...), errors.Join(err, aerr)
	}
	if err != nil || slices.ContainsFunc(s.Volumes, func(v *Volume) bool { return v.Dropped != "" }) {
		return done, err
	}
	if left, err := s.allLeft(ctl); err != nil || left > 0 {
		return done, err
	}
	err = s.finish(ctx, ctl)
	switch {
	case errors.Is(err, ErrStore): // not mounted
		return append(done, fmt.Sprintf("the rollback to %s is done; %s", s.Name, restOfRollback)), nil
	case err != nil:
		return done, err
	}
	return append(done, fmt.Sprintf("the rollback to %s is done", s.Name)), nil
}
