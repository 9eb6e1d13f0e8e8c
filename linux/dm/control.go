package dm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	devDir      = "/dev"
	mapperDir   = "/dev/mapper"
	controlName = "control"
	miscFile    = "/proc/misc"
	miscName    = "device-mapper" // in miscFile
	miscMajor   = 10              // MISC_MAJOR, include/uapi/linux/major.h
	// controlMinor is MAPPER_CTRL_MINOR of include/linux/miscdevice.h. Opening a
	// node of that number makes the kernel load the module.
	controlMinor = 236
)

// openControl opens /dev/mapper/control, and makes it if it is not there.
func openControl() (*os.File, error) {
	path := filepath.Join(mapperDir, controlName)
	file, err := openControlNode(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return file, err
	}
	minor, err := controlNumber()
	if err != nil {
		return nil, fmt.Errorf("dm: %w", err)
	}
	made := os.Mkdir(mapperDir, 0o755)
	if made != nil && !errors.Is(made, fs.ErrExist) {
		return nil, fmt.Errorf("dm: %w", made)
	}
	err = unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(miscMajor, minor)))
	if err != nil && err != unix.EEXIST {
		return nil, fmt.Errorf("dm: make %s: %w", path, err)
	}
	file, err = openControlNode(path)
	if errors.Is(err, ErrNotSupported) {
		err = errors.Join(err, os.Remove(path))
		if made == nil {
			err = errors.Join(err, os.Remove(mapperDir))
		}
	}
	return file, err
}

func openControlNode(path string) (*os.File, error) {
	// Without O_NONBLOCK the runtime would not poll the descriptor for Wait.
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO):
		return nil, fmt.Errorf("dm: %w: no device-mapper (modprobe dm-mod): %w", ErrNotSupported, err)
	case err != nil:
		return nil, fmt.Errorf("dm: %w", err)
	}
	info, err := file.Stat()
	if err == nil && info.Mode()&fs.ModeCharDevice == 0 {
		err = fmt.Errorf("%s is not a character device", path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("dm: %w", err), file.Close())
	}
	return file, nil
}

// controlNumber returns the minor number of the control device.
func controlNumber() (uint32, error) {
	misc, err := os.ReadFile(miscFile)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(misc)) {
		if f := strings.Fields(line); len(f) == 2 && f[1] == miscName {
			n, err := strconv.ParseUint(f[0], 10, 32)
			return uint32(n), err
		}
	}
	return controlMinor, nil
}
