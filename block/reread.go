package block

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Reread makes reads come from the disk from now on; see the function Reread.
func (d *Device) Reread() error { return Reread(d.f) }

// Reread writes what memory holds of a file or device, as far as it can be written,
// and forgets it, so that reads come from the disk from now on. After a failed write
// memory holds what the disk does not: the kernel reports that once, and then takes the
// page for clean. The error may be that of such a write, by anyone and long ago.
func Reread(f *os.File) error {
	err := f.Sync()
	if forget := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); forget != nil {
		err = errors.Join(err, &os.PathError{Op: "forget", Path: f.Name(), Err: forget})
	}
	return err
}
