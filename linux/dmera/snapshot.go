package dmera

import (
	"context"
	"errors"
	"fmt"

	"tidemark/extent"
	"tidemark/format/era"
)

// Prepare makes ready for TakeSnapshot all that writes a file: it locks the
// ownership of the device's snapshot, drops a snapshot that a dead process of ours
// has left, and writes down that the next one is ours. After it TakeSnapshot is one
// message to the kernel and two reads. Call it before a freeze; otherwise
// TakeSnapshot calls it. Calling it again does nothing.
//
// The error wraps ErrHeld when a snapshot is held by a process that lives, or by a
// program that is not ours; that one is left alone.
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

// dropLeft drops a held snapshot when it is ours: the lock says that its process is
// dead, the record that it was ours.
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

// release gives the ownership up, and with it what was written down of it.
func (d *Device) release() error {
	if d.claim == nil {
		return nil
	}
	c := d.claim
	d.claim = nil
	return c.release()
}

// TakeSnapshot ends the current era and takes the metadata snapshot of what came
// before; see the package comment for what it tells. There is one for a device:
// Close it soon, for as long as it is held no space in the metadata becomes free.
//
// It may be called while filesystems are frozen, when Prepare was called before.
func (d *Device) TakeSnapshot(ctx context.Context) (*Snapshot, error) {
	if err := d.Prepare(ctx); err != nil {
		return nil, err
	}
	// What is written down of an earlier one must not make this one another's.
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

// explain tells a snapshot that was taken by somebody else in between from other
// failures.
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

// Metadata returns the state of the metadata that is held, read from the metadata
// device as it is asked for. It is good until Close; call its Recheck after the
// last use, for any other program can drop the snapshot.
func (s *Snapshot) Metadata() *era.View { return s.view }

// Changed returns the parts of the device with a write counted in the era since or
// later, up to the moment of the snapshot, in whole blocks, clipped to the size of
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
		// It stays written down as ours: who comes next drops it.
		return errors.Join(err, s.d.forget())
	}
	return s.d.release()
}

// forget gives the lock up and leaves what was written down.
func (d *Device) forget() error {
	c := d.claim
	d.claim = nil
	return c.lock.Close()
}
