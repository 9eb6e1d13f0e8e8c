// Package dm controls the kernel's device-mapper through /dev/mapper/control. It
// needs neither dmsetup nor libdevmapper, and agrees with both.
//
// For most uses, call [Open], then [Control.Create], [Control.Load] and [Control.Resume]
// to make a device, and [Control.Remove] to take it away.
//
// The package owns the ioctl interface (include/uapi/linux/dm-ioctl.h, version 4), names as
// libdevmapper writes them, and the nodes in /dev/mapper. A device has two slots
// for tables: Load fills the inactive slot, Resume makes its table the active one.
//
// # Names
//
// Callers write a name as people read it: "a b". The kernel and /dev/mapper have every
// byte outside of letters, digits and #+-.:=@_ as \xNN ("a\x20b"), which udev expects and
// libdevmapper writes. A name that is already written so is taken as it is. List shows
// devices that a program named without these escapes, and Find finds them by number; by
// name they cannot be reached.
//
// # udev
//
// Where udevd runs with device-mapper's rules, Resume, Remove and Rename return
// after udev has dealt with the change, so that /dev/mapper/NAME and the links to
// the device are there, or gone, and udev does not hold the device open. Udev answers
// through a cookie, as for libdevmapper. Elsewhere, and when udev does not answer
// within half a minute, this package makes or removes /dev/mapper/NAME itself.
//
// # What it refuses
//
// Names with a slash, a NUL, too long, or taken by the system; tables with gaps,
// overlaps or empty targets; any reply of the kernel whose offsets or lengths do
// not fit the buffer. It does not look at the content of a table's devices: the caller
// answers for the table.
//
// Errors name the operation, the device and, where there is one, the target. When the
// kernel refuses a table, the error repeats the kernel's log about it.
//
// A Control may be used by several goroutines at once.
package dm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"tidemark/linux/sysfs"
)

// Errors that callers act on.
var (
	// ErrNotFound says that there is no device-mapper device of that name or number.
	ErrNotFound = errors.New("no such device-mapper device")
	// ErrExists says that a name or UUID belongs to another device already.
	ErrExists = errors.New("name or UUID is taken")
	// ErrBusy says that a device is in use: open, mounted, or part of another.
	ErrBusy = errors.New("device is in use")
	// ErrNotSupported says that this kernel lacks device-mapper, a target, or a call.
	ErrNotSupported = errors.New("not supported by this kernel")
)

// SectorSize is the unit of all positions and lengths in tables, in bytes.
const SectorSize = 512

// Version is that of the ioctl interface, or of a target type.
type Version struct{ Major, Minor, Patch uint32 }

// String returns the version as dmsetup writes it, "4.48.0".
func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch) }

// Dev is sysfs.Dev.
type Dev = sysfs.Dev

// Info is the state of a device.
type Info struct {
	Name         string // as people read it
	UUID         string // "": none
	Major, Minor uint32
	OpenCount    int32  // openers: mounts, other devices, programs
	EventNr      uint32 // counts the events that Wait waits for
	TargetCount  uint32 // of the active table

	Suspended         bool // by Suspend
	SuspendedInternal bool // by the kernel itself
	ReadOnly          bool
	ActiveTable       bool
	InactiveTable     bool // loaded, and waiting for Resume
	DeferredRemove    bool // goes when the last user closes it
}

// Dev returns the device's number.
func (i Info) Dev() sysfs.Dev { return sysfs.Dev{Major: i.Major, Minor: i.Minor} }

// Path returns where the device's node is, "/dev/mapper/NAME".
func (i Info) Path() string { return filepath.Join(mapperDir, kernelNameOf(i.Name)) }

// KernelPath returns where the kernel itself keeps the device's node, "/dev/dm-0": it is there from Create on,
// also while /dev/mapper does not have the device yet.
func (i Info) KernelPath() string { return sysfs.DevPath(kernelNode(i)) }

// Control is an open connection to device-mapper.
type Control struct {
	file    *os.File
	version Version
	udev    udev
	nodes   nodes
}

// Open opens /dev/mapper/control, and makes it when udev has not. The error wraps
// ErrNotSupported when the kernel has no device-mapper, fs.ErrPermission when the
// caller lacks CAP_SYS_ADMIN.
func Open() (*Control, error) {
	file, err := openControl()
	if err != nil {
		return nil, err
	}
	c := &Control{file: file, udev: defaultUdev(), nodes: nodes{dev: devDir}}
	r, err := c.run(&request{op: "ask for the version", cmd: cmdVersion})
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	c.version = r.version()
	return c, nil
}

// Close closes the connection. Devices stay as they are.
func (c *Control) Close() error { return c.file.Close() }

// Version returns the version of the kernel's ioctl interface.
func (c *Control) Version() (Version, error) { return c.version, nil }
