package dmera

import (
	"context"
	"errors"
	"fmt"

	"tidemark/extent"
	"tidemark/format/era"
)

// Prepare does all work of TakeSnapshot that writes a file: it locks the ownership of the
// device's snapshot, drops a snapshot that a dead process of ours has left, and writes
// down that the next one is ours. After it TakeSnapshot is one message to the kernel and
// two reads. Call Prepare before a freeze; otherwise TakeSnapshot calls it. A second call
// does nothing.
//
// The error wraps ErrHeld when a living process or another program holds a snapshot,
// which stays.
func (d *Device) Prepare(ctx context.Context) error {
	if d.claim != nil {
		return nil
	}
	c, err := d.newClaim()
	if err != nil {
		return err
	}
	if err := d.prepare(ctx, c); err != nil {
		return errors.Join(err, c.release())
	}
	d.claim = c
	return nil
}

func (d *Device) prepare(ctx context.Context, c *claim) error {
	st, err := d.Status(ctx)
	if err != nil {
		return err
	}
	if st.HeldSnapshot != 0 {
		if err := d.dropLeft(ctx, c, st); err != nil {
			return err
		}
	}
	id, err := d.Identity()
	if err != nil {
		return err
	}
	return c.write(record{Device: d.Name(), Identity: id, Era: st.Era})
}

// dropLeft drops a held snapshot when it is ours: the lock is free, so its process is
// dead, and the record names it.
func (d *Device) dropLeft(ctx context.Context, c *claim, st Status) error {
	v, err := d.meta.held()
	if err != nil {
		return fmt.Errorf("dmera: %s: %w", d.Name(), err)
	}
	if v == nil || !c.took(v.Superblock()) {
		return fmt.Errorf("dmera: %s: %w by another program, in block %d", d.Name(), ErrHeld, st.HeldSnapshot)
	}
	return d.drop(ctx)
}

func (d *Device) drop(ctx context.Context) error { return d.message(ctx, "drop_metadata_snap") }

// release gives the ownership up and removes its record.
func (d *Device) release() error {
	if d.claim == nil {
		return nil
	}
	c := d.claim
	d.claim = nil
	return c.release()
}

// TakeSnapshot ends the current era and takes the metadata snapshot of all eras before;
// the package comment says what it tells. A device has one snapshot at a time. Close it
// soon: while it is held no space in the metadata becomes free.
//
// TakeSnapshot may be called while filesystems are frozen, when Prepare was called before.
func (d *Device) TakeSnapshot(ctx context.Context) (*Snapshot, error) {
	if err := d.Prepare(ctx); err != nil {
		return nil, err
	}
	// With the era of an earlier snapshot in the record, this one would count as another
	// program's.
	if err := d.claim.taken(0); err != nil {
		return nil, err
	}
	if err := d.message(ctx, "take_metadata_snap"); err != nil {
		return nil, d.explain(ctx, err)
	}
	s := &Snapshot{d: d}
	v, err := d.meta.held()
	if err == nil && v == nil {
		err = fmt.Errorf("%s: %w", d.metaPath, era.ErrSnapshotGone)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("dmera: %s: %w", d.Name(), err), s.Close())
	}
	s.view = v
	if err := d.claim.taken(v.Superblock().Era); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// explain adds ErrHeld when another program has taken a snapshot in between.
func (d *Device) explain(ctx context.Context, err error) error {
	if st, failed := d.Status(ctx); failed == nil && st.HeldSnapshot != 0 {
		return fmt.Errorf("%w: %w by another program, in block %d", err, ErrHeld, st.HeldSnapshot)
	}
	return err
}

// Snapshot is the held metadata snapshot of a device.
type Snapshot struct {
	d      *Device
	view   *era.View
	closed bool
}

// Era returns the era that began when the snapshot was taken.
func (s *Snapshot) Era() era.Era { return s.view.Superblock().Era }

// Metadata returns the held state of the metadata; it reads the metadata device when it
// is asked. It is valid until Close. Call its Recheck after the last use: any program can
// drop the snapshot.
func (s *Snapshot) Metadata() *era.View { return s.view }

// Changed returns the extents of the device, in bytes, with a write counted in the era
// since or later, up to the moment of the snapshot: whole blocks, clipped to the size of
// the device when it was opened. The error wraps ErrFuture when since is above Era,
// and era.ErrSnapshotGone when the snapshot was dropped meanwhile.
func (s *Snapshot) Changed(ctx context.Context, since era.Era) (extent.Set, error) {
	if since > s.Era() {
		return extent.Set{}, fmt.Errorf("dmera: %s: era %d: %w, it is %d now", s.d.Name(), since, ErrFuture, s.Era())
	}
	s.d.meta.ctx = ctx
	defer func() { s.d.meta.ctx = nil }()
	var changed extent.Builder
	err := s.view.Changed(era.Query{Since: since}, func(r era.Range) error {
		off, length := r.Bytes(s.d.BlockSize())
		if length = min(length, s.d.Size()-off); length > 0 {
			changed.Add(extent.Extent{Off: off, Len: length})
		}
		return nil
	})
	if err == nil {
		err = s.view.Recheck()
	}
	if err != nil {
		return extent.Set{}, fmt.Errorf("dmera: %s: %w", s.d.Name(), err)
	}
	return changed.Set(), nil
}

// Close drops the snapshot. It writes to the folders in Options, so call it when
// nothing is frozen any more. Closing twice does nothing.
func (s *Snapshot) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	err := s.d.drop(context.Background())
	if err != nil {
		// The record stays: the next owner drops the snapshot.
		return errors.Join(err, s.d.forget())
	}
	return s.d.release()
}

// forget gives the lock up and leaves the record.
func (d *Device) forget() error {
	c := d.claim
	d.claim = nil
	return c.lock.Close()
}

// Retake drops the snapshot and takes a new one in its place. Unlike Close and
// TakeSnapshot it keeps the ownership and creates no file, so that it may be called while
// filesystems are frozen. When the kernel does not drop the snapshot, it is still held,
// and Close tries again. After any other error nothing is held: Close does nothing, and
// Unprepare or Device.Close give the ownership up.
func (s *Snapshot) Retake(ctx context.Context) error {
	if s.closed {
		return fmt.Errorf("dmera: %s: %w", s.d.Name(), era.ErrSnapshotGone)
	}
	if err := s.d.drop(ctx); err != nil {
		return err
	}
	s.closed = true
	next, err := s.d.TakeSnapshot(ctx)
	if err != nil {
		return err
	}
	s.view, s.closed = next.view, false
	return nil
}

// Unprepare undoes Prepare when no snapshot was taken since. It writes to the folders in
// Options.
func (d *Device) Unprepare() error { return d.release() }
