package dmera

import (
	"context"
	"errors"
	"fmt"

	"tidemark/format/era"
	"tidemark/linux/dm"
)

// Drain waits until each write that was given to the device before has reached the
// data device, and begins a new era, which it returns: every write counted in an
// older one is through. New writes wait meanwhile; filesystems are not frozen.
//
// The device is suspended and resumed, by a short process of its own that no signal
// to this one ends: the program's main must call reexec.Main with Step. ctx is looked
// at only before.
func (d *Device) Drain(ctx context.Context) (era.Era, error) {
	st, err := d.Status(ctx)
	if err != nil {
		return 0, err
	}
	if err := d.onlyTable(); err != nil {
		return 0, err
	}
	if err := runStep(stepDrain, d.Name(), d.info.Dev()); err != nil {
		return 0, fmt.Errorf("dmera: %s: drain: %w", d.Name(), err)
	}
	// The current era may be later by now, when somebody made a checkpoint since.
	// This is the first that cannot have a write from before.
	return st.Era + 1, nil
}

// onlyTable refuses a device for which somebody has loaded another table: to resume it
// would put that in the place of the era device's.
func (d *Device) onlyTable() error {
	info, err := d.ctl.Info(d.Name())
	if err != nil {
		return fmt.Errorf("dmera: %w", err)
	}
	return onlyTable(info)
}

func onlyTable(info dm.Info) error {
	if info.InactiveTable {
		return refused("%s: another table waits for it, and would take the place of its own when it is resumed; \"dmsetup clear %s\" drops that table", info.Name, info.Name)
	}
	return nil
}

// drain is what the process does.
func drain(ctl *dm.Control, name string) error {
	_, err := ctl.Suspend(name, dm.SuspendOptions{NoLockFS: true})
	_, failed := ctl.Resume(name) // also after a failure: what is suspended already stays so
	return errors.Join(err, failed)
}
