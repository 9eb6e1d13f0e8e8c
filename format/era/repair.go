package era

import (
	"fmt"
	"io"
)

// Repair writes to the first size bytes of w what can be read of the metadata
// m. Blocks whose history is lost count as written in the current era; see
// DumpOptions.Damaged, which gets each fault. A held snapshot is not kept.
//
// The kernel must not be using m, and w must not be the device that m reads from.
func Repair(m *Metadata, w io.WriterAt, size int64, damaged func(*Fault)) error {
	if damaged == nil {
		damaged = func(*Fault) {}
	}
	if err := m.Live().Dump(NewBuilder(w, size), DumpOptions{Damaged: damaged}); err != nil {
		return fmt.Errorf("era: repair: %w", err)
	}
	return nil
}
