package block

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Direct opens the file or device again, for reading and writing past the page cache.
// Offsets, lengths and the addresses of buffers must then be multiples of what the
// filesystem or the device wants, which answers EINVAL otherwise.
func (d *Device) Direct() (*Device, error) {
	f, err := d.openDirect(unix.O_RDWR)
	if err != nil {
		return nil, err
	}
	again := *d
	again.f, again.direct = f, d.isDevice
	return &again, nil
}

// openDirect opens by descriptor, which cannot be another file by now.
func (d *Device) openDirect(mode int) (*os.File, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", d.f.Fd()), mode|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open for direct I/O", Path: d.f.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), d.f.Name()), nil
}
