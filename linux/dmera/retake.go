package dmera

import (
	"context"
	"fmt"

	"tidemark/format/era"
)

// Retake drops the snapshot and takes a new one, which takes its place: the same as
// Close and TakeSnapshot, but the ownership is kept and no file is written, so that
// it may be called while filesystems are frozen. When the snapshot could not be
// dropped it is still held, and Close tries again; after any other error nothing is
// held, Close does nothing, and Unprepare or Device.Close give the ownership up.
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

// Unprepare takes back what Prepare did, where no snapshot was taken since. It
// writes to the folders in Options.
func (d *Device) Unprepare() error { return d.release() }
