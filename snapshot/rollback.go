package snapshot

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/format/snapstore"
	"tidemark/linux/dm"
)

// How an origin X goes back: the kernel's target snapshot-merge takes the place of X's table. From
// then on X reads as the snapshot, and can be used. What the store has is copied back, from its end
// on. When the store is empty X gets its own table again.
//
// A rollback that the record tells of goes on after every crash, so nobody may have used X as it
// was in between. That is why X first gets a table that refuses everything, then the record is
// written, and then X gets the merge. A crash before the record leaves X refusing, which repair
// undoes; a crash after it, and a power cut at any moment, is taken up by repair, or by Assemble.

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
	case s.Incremental:
		return 0, fmt.Errorf("%w: it is incremental, and has no data", ErrNoRollback)
	case s.Writable:
		return 0, fmt.Errorf("%w: its store holds what was written to the image, too", ErrNoRollback)
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
	d, err := v.claim()
	if err != nil {
		return 0, err
	}
	if err := d.Close(); err != nil {
		return 0, err
	}
	return s.changed(v)
}

// claim keeps everybody else from using a volume, as long as it is open.
func (v *Volume) claim() (*block.Device, error) {
	d, err := block.Open(v.path(), block.Options{Exclusive: true})
	if errors.Is(err, unix.EBUSY) {
		err = fmt.Errorf("%w: %s is mounted or in use (%w): unmount it first; it can be mounted again at once", ErrNoRollback, v.path(), err)
	}
	return d, err
}

// changed sums up the chunks in the store. One of the store itself would be overwritten while it is
// read.
func (s *Snapshot) changed(v *Volume) (int64, error) {
	copied, err := s.copiedChunks(v)
	if err == nil && v.Store.Kind == Inside && !copied.Intersect(extent.NewSet(v.Store.Pieces...)).Empty() {
		err = fmt.Errorf("%w: what lies in the blocks of its own store was written to, after its file was removed; copy from the image instead", ErrNoRollback)
	}
	return copied.Bytes(), err
}

// copiedChunks returns the chunks of a volume that a persistent store has.
func (s *Snapshot) copiedChunks(v *Volume) (set extent.Set, err error) {
	d, err := block.Open("/dev/mapper/"+s.cow(v), block.Options{Direct: true})
	if err != nil {
		return set, err
	}
	defer d.Close()
	store, err := snapstore.Open(aligned{d}, d.Size())
	if err = errors.Join(err, v.Store.marked(aligned{d})); err != nil {
		return set, err
	}
	var chunks []extent.Extent
	for e, err := range store.Exceptions() {
		if err != nil {
			return set, err
		}
		at := int64(e.Old) * s.Chunk
		if n := len(chunks); n > 0 && chunks[n-1].End() == at {
			chunks[n-1].Len += s.Chunk
		} else {
			chunks = append(chunks, extent.Extent{Off: at, Len: s.Chunk})
		}
	}
	return extent.NewSet(chunks...), nil
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
	claimed, release, err := s.openAll((*Volume).claim)
	if err != nil {
		return fmt.Errorf("snapshot: %s: %w", s.Name, err)
	}
	defer release()
	if err := s.shutAll(ctl, claimed); err != nil {
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
func (s *Snapshot) shutAll(ctl *dm.Control, claimed []*block.Device) (err error) {
	for i, v := range s.Volumes {
		if err == nil {
			err = gone(ctl, s.image(v))
		}
		if err == nil {
			err = s.shut(ctl, v, claimed[i])
		}
	}
	if err == nil {
		s.Rollback = true
		if err = s.write(); err == nil {
			return nil
		}
		s.Rollback = false
		if werr := s.write(); werr != nil { // the record may say so: a boot would put back what is written from now on
			return fmt.Errorf("until \"tidemark snapshot repair\" can write its record, the disks can be used by nobody: %w", errors.Join(err, werr))
		}
	}
	for _, v := range s.Volumes {
		kind, terr := s.tableOf(ctl, v)
		err = errors.Join(err, terr, s.reopen(ctl, v, kind))
	}
	return err
}

// shut has a claimed volume refuse everything. What the page cache has of it is forgotten: it would
// be read, or written, in place of what comes then.
func (s *Snapshot) shut(ctl *dm.Control, v *Volume, d *block.Device) error {
	if err := v.raiseReal(ctl); err != nil {
		return err
	}
	if err := v.give(ctl, v.table("error", "")); err != nil {
		return err
	}
	return unix.IoctlSetInt(int(d.File().Fd()), unix.BLKFLSBUF, 0)
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
