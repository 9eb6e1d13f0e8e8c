// Package dmhold makes devices of device-mapper stand still, all at one instant, changes what is
// to change meanwhile, and makes sure that they go on.
//
// For most uses, call [Hold] with a [Plan]. The program's main must begin with
//
//	reexec.Main(dmhold.Holder)
//
// The package owns the holder: a second process of the same program, in a session of its own and
// locked in memory, which makes all the calls. It suspends the devices side by side; the kernel
// freezes the filesystem that lies on each, and waits until nothing is in flight. Then the caller
// does what belongs to that instant, as to cut its trackers. When the caller says so the holder
// sends the plan's messages, starts the plan's other devices, and resumes the devices: those that
// are to get another table get it by that. When the caller fails, dies, or takes longer than the
// plan allows, the holder drops the tables that wait, and resumes the devices as they were.
//
// When the holder alone dies the caller does that. Holders of several processes wait for each other.
//
// The caller's own process is kept in memory during the instant, but must not wait for a device
// that stands still: it starts no program from one, and writes to no file on one, nor to a mapping of
// one, which keeps a whole process from changing its memory.
//
// When both processes are killed at the same moment, as by cgroup.kill, the devices stay
// suspended ("dmsetup resume" lets them go on). The package refuses devices for which a table
// waits that is not the plan's. Hold may be called by several goroutines at once.
//
// As in drivers/md/dm.c and dm-ioctl.c of Linux 6.1 to 6.12.
package dmhold

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/linux/dm"
	"tidemark/linux/sysfs"
)

var (
	// ErrRefused says that a device is not what the plan takes it for. Nothing was suspended.
	ErrRefused = errors.New("refused")
	// ErrFrozen says that another program has frozen the filesystem on a device.
	ErrFrozen = errors.New("its filesystem is frozen by someone else")
	// ErrExpired says that the devices went on, as they were, because the time was up.
	ErrExpired = errors.New("the devices had to go on: the time was up")
	// ErrPartly says that what was to change while the devices stood still has changed in part.
	// All devices go on.
	ErrPartly = errors.New("done in part")
)

// Plan is what stands still, and what changes meanwhile.
type Plan struct {
	Devices []Device
	// Messages are sent, in this order, while all devices stand still. The first that fails
	// ends the plan.
	Messages []Message
	// Start are devices that are resumed while the others stand still, before them.
	Start []string
	// Limit bounds the time that the devices stand still, but for what the kernel needs to
	// suspend and to resume them. It must not be 0.
	Limit time.Duration
}

// Device is a device that is to stand still.
type Device struct {
	Name string
	Dev  sysfs.Dev // the number that the device of that name has to have
	// NoLockFS leaves the filesystem on it as it is.
	NoLockFS bool
	// Hidden has udev go on to pass the device by when it is resumed (dm.ResumeOptions).
	Hidden bool
	// Swap has the table that waits for the device take the place of its own, when nothing
	// fails. Without it no table may be waiting.
	Swap bool
	// Table, with Swap, is that table, and none may be waiting: it is loaded when all devices
	// stand still, as it has to be when its targets read what those of the old one write.
	Table []dm.Target
}

// Message is a message to the target at sector 0 of a device.
type Message struct{ Device, Text string }

// check refuses a device that is another one than the plan's, or has a table that is not.
func (d Device) check(ctl *dm.Control) error {
	info, err := ctl.Info(d.Name)
	switch {
	case err != nil:
		return err
	case info.Dev() != d.Dev:
		return fmt.Errorf("%w: %s: another device has taken the name", ErrRefused, d.Name)
	case info.Suspended:
		return fmt.Errorf("%w: %s: it is suspended already; \"dmsetup resume %s\" lets it go on", ErrRefused, d.Name, d.Name)
	case d.Swap && len(d.Table) == 0 && !info.InactiveTable:
		return fmt.Errorf("%w: %s: no table waits for it", ErrRefused, d.Name)
	case (!d.Swap || len(d.Table) > 0) && info.InactiveTable:
		return fmt.Errorf("%w: %s: another table waits for it, and would take the place of its own when it is resumed; \"dmsetup clear %s\" drops that table", ErrRefused, d.Name, d.Name)
	}
	return nil
}

// settle drops the table that waits for a device, and reports whether the device is suspended.
func (d Device) settle(ctl *dm.Control) (suspended bool, err error) {
	info, err := ctl.Info(d.Name)
	if err != nil {
		return false, err
	}
	if d.Swap && info.InactiveTable {
		if _, err := ctl.Clear(d.Name); err != nil {
			return true, fmt.Errorf("%w; it is suspended: \"dmsetup clear %s\" and \"dmsetup resume %s\" let it go on", err, d.Name, d.Name)
		}
	}
	return info.Suspended, nil
}

// suspendError tells a filesystem that somebody has frozen, which Linux before 6.8 answers
// EBUSY for.
func suspendError(err error) error {
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%w: %w", ErrFrozen, err)
	}
	return err
}
