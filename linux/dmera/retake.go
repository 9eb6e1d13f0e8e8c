package dmera

import (
	"context"
	"fmt"

	"tidemark/format/era"
)

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
