package mirror

import (
	"fmt"

	"tidemark/block"
	"tidemark/format/sidecar"
)

// rereader is a Target or File whose reads may come from memory: after a write that
// failed that is not what the disk holds, however often it is read.
type rereader interface{ Reread() error }

// Reread makes reads come from the disk; see block.Reread.
func (f osFile) Reread() error { return block.Reread(f.File) }

// reread has target and sums read from the disk, before anything they hold is
// believed. Errors are of writes that an earlier run lost: what they were to bring is
// written again, or found missing now.
func (s *Store) reread() {
	for _, of := range []any{s.target, s.sumsFile} {
		if r, ok := of.(rereader); ok {
			_ = r.Reread() // see above
		}
	}
}

// Distrust has the next run hold every block against its checksum, because the target
// was found to hold something else.
func (s *Store) Distrust() error {
	next := s.state
	next.Target = sidecar.Target{}
	if err := s.saveState(next); err != nil {
		return fmt.Errorf("mirror: distrust: %w", err)
	}
	s.suspect = differs(next.Target, s.seen)
	return nil
}
