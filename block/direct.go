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
	// By descriptor, which cannot be another file by now.
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", d.f.Fd()), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open for direct I/O", Path: d.f.Name(), Err: err}
	}
	again := *d
	again.f, again.direct = os.NewFile(uintptr(fd), d.f.Name()), d.isDevice
	return &again, nil
}
