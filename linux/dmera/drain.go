package dmera

import (
	"context"
	"errors"
	"fmt"

	"tidemark/format/era"
	"tidemark/linux/dm"
)

// Drain waits until each write that the device got before the call has reached the data
// device. It begins a new era and returns it: every write counted in an older era has
// ended. New writes wait meanwhile. No filesystem is frozen.
//
// A process of its own suspends and resumes the device; a signal to the caller's process
// does not end it. The program's main must call reexec.Main with Step. ctx counts only
// before the process starts.
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
	// The current era may be later by now, after another program's checkpoint. This is
	// the first era that cannot have a write from before.
	return st.Era + 1, nil
}

// onlyTable refuses a device with a second table loaded: a resume would put that table
// in the place of the era device's own.
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
