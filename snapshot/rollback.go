package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/format/snapstore"
	"tidemark/linux/dm"
	"tidemark/linux/dmsnap"
)

// # How an origin goes back
//
// The kernel's target snapshot-merge takes the place of X's table: from then on X reads as the
// snapshot, can be used, and what the store has is copied back, from its end on. When the store
// is empty X gets its own table again.
//
// A rollback that the record tells of goes on after every crash, so nobody may have used X as it
// was in between. That is why X first gets a table that refuses everything, then the record is
// written, and then X gets the merge. A crash before the record leaves X refusing, which repair
// undoes; a crash after it, and a power cut at any moment, is taken up by repair, or by Assemble.

// The tables that a volume has.
type tableKind string

const (
	absent  tableKind = "absent"
	plain   tableKind = "plain"   // its own
	kept    tableKind = "kept"    // snapshot-origin, over the device below
	shut    tableKind = "shut"    // it refuses everything, until the rollback begins
	merging tableKind = "merging" // the snapshot is being put back
)

// tableOf tells what table a volume has now.
func (s *Snapshot) tableOf(ctl *dm.Control, v *Volume) (tableKind, error) {
	table, _, err := ctl.Table(v.Name)
	switch {
	case errors.Is(err, dm.ErrNotFound):
		return absent, nil
	case err != nil || len(table) != 1:
		return plain, err
	}
	real, ours, err := own(ctl, v.real())
	if !ours || err != nil {
		return plain, err
	}
	first, _, _ := strings.Cut(strings.TrimSpace(table[0].Params), " ")
	switch {
	case table[0].Type == "error":
		return shut, nil
	case table[0].Type == "snapshot-origin" && first == real.Dev().String():
		return kept, nil
	case table[0].Type == "snapshot-merge" && first == real.Dev().String():
		return merging, nil
	}
	return plain, nil
}

// RollbackPlan is what a rollback would do to one volume.
type RollbackPlan struct {
	Origin string `json:"origin"` // name in device-mapper
	Bytes  int64  `json:"bytes"`  // that have changed since the snapshot, in whole chunks
}

// PlanRollback tells how much a rollback would put back, or why there can be none now. The error
// wraps ErrNoRollback or ErrInUse.
func (s *Snapshot) PlanRollback() (plan []RollbackPlan, err error) {
	ctl, err := dm.Open()
	if err != nil {
		return nil, err
	}
	defer ctl.Close()
	if err := s.unused(ctl); err != nil {
		return nil, err
	}
	for _, v := range s.Volumes {
		n, err := s.mayRollBack(ctl, v)
		if err != nil {
			return nil, fmt.Errorf("snapshot: %s: %s: %w", s.Name, v.Name, err)
		}
		plan = append(plan, RollbackPlan{v.Name, n})
	}
	return plan, nil
}

// mayRollBack returns how many bytes of a volume have changed since the snapshot.
func (s *Snapshot) mayRollBack(ctl *dm.Control, v *Volume) (int64, error) {
	switch {
	case !s.Persistent:
		return 0, fmt.Errorf("%w: its store cannot be put back; one that is taken with --persistent can", ErrNoRollback)
	case s.Rollback:
		return 0, fmt.Errorf("%w: it goes on already", ErrNoRollback)
	}
	st := VolumeStatus{Volume: v}
	if err := s.look(ctl, v, &st); err != nil {
		return 0, err
	}
	if st.Lost != "" {
		return 0, fmt.Errorf("%w: it is lost: %s", ErrNoRollback, st.Lost)
	}
	if others, err := s.others(ctl, v); err != nil || others {
		return 0, errors.Join(err, fmt.Errorf("%w: there are other snapshots of %s, whose stores would be overwritten: destroy them first", ErrNoRollback, v.Name))
	}
	d, err := block.Open("/dev/mapper/"+v.Name, block.Options{Exclusive: true})
	if errors.Is(err, unix.EBUSY) {
		return 0, fmt.Errorf("%w: /dev/mapper/%s is mounted or in use: unmount it first; it can be mounted again at once", ErrNoRollback, v.Name)
	}
	if err != nil {
		return 0, err
	}
	if err := d.Close(); err != nil {
		return 0, err
	}
	return s.changed(v)
}

// changed sums up the chunks in the store. One of the store itself would be overwritten while it is
// read.
func (s *Snapshot) changed(v *Volume) (int64, error) {
	d, err := block.Open("/dev/mapper/"+s.cow(v), block.Options{Direct: true})
	if err != nil {
		return 0, err
	}
	defer d.Close()
	store, err := snapstore.Open(aligned{d}, v.Store.Size)
	if err != nil {
		return 0, err
	}
	own := extent.NewSet(v.Store.Pieces...)
	n := int64(0)
	for e, err := range store.Exceptions() {
		if err != nil {
			return 0, err
		}
		at := extent.Extent{Off: int64(e.Old) * s.Chunk, Len: s.Chunk}
		if v.Store.Kind == Inside && !own.Intersect(extent.NewSet(at)).Empty() {
			return 0, fmt.Errorf("%w: what lies in the blocks of its own store was written to, through the image or after the file was removed; copy from the image instead", ErrNoRollback)
		}
		n += s.Chunk
	}
	return n, nil
}

// RollBack puts all volumes back to what they were when the snapshot was taken, and returns when
// they read so and can be used; WaitRolledBack waits until nothing is left to be copied. Nobody may
// use the volumes. The error wraps ErrNoRollback or ErrInUse: nothing has changed then.
func (s *Snapshot) RollBack(ctx context.Context) error {
	unlock, err := s.o.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	now, err := Find(s.o, s.Name)
	if err != nil {
		return err
	}
	*s = *now
	if _, err := s.PlanRollback(); err != nil {
		return err
	}
	ctl, err := dm.Open()
	if err != nil {
		return err
	}
	defer ctl.Close()
	if err := s.shutAll(ctl); err != nil {
		for _, v := range s.Volumes {
			kind, terr := s.tableOf(ctl, v)
			err = errors.Join(err, terr, s.reopen(ctl, v, kind))
		}
		return fmt.Errorf("snapshot: %s: %w", s.Name, err)
	}
	for _, v := range s.Volumes {
		if err := s.merge(ctl, v); err != nil {
			return fmt.Errorf("snapshot: %s: %s: %w: \"tidemark snapshot repair\" takes it up; until then %s can be used by nobody", s.Name, v.Name, err, v.Name)
		}
	}
	return nil
}

// shutAll has nobody use the volumes any more, and writes down that the rollback has begun.
func (s *Snapshot) shutAll(ctl *dm.Control) error {
	for _, v := range s.Volumes {
		if err := gone(ctl, s.image(v)); err != nil {
			return err
		}
		if err := v.give(ctl, v.table("error", "")); err != nil {
			return err
		}
		d, err := block.Open("/dev/mapper/"+v.Name, block.Options{Exclusive: true})
		if err != nil {
			return err // somebody was faster
		}
		if err := d.Close(); err != nil {
			return err
		}
	}
	s.Rollback = true
	err := s.write()
	if err != nil {
		s.Rollback = false
	}
	return err
}

// give has a volume that nobody uses get a table.
func (v *Volume) give(ctl *dm.Control, table []dm.Target) error {
	_, err := ctl.Load(v.Name, table, dm.LoadOptions{})
	if err == nil {
		_, err = ctl.Resume(v.Name)
	}
	return err
}

// reopen has a volume keep the snapshot again, whatever a rollback that did not begin has left.
func (s *Snapshot) reopen(ctl *dm.Control, v *Volume, kind tableKind) error {
	if kind != kept && kind != shut {
		return nil
	}
	if err := v.goOn(ctl); err != nil {
		return err
	}
	return s.join(ctl, v)
}

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
