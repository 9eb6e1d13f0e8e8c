package dmera

import (
	"context"
	"errors"

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
	if err := d.runStep(stepDrain); err != nil {
		return 0, err
	}
	// The current era may be later by now, after another program's checkpoint. This is
	// the first era that cannot have a write from before.
	return st.Era + 1, nil
}

// drain is the step of the process.
func drain(ctl *dm.Control, name string) error {
	_, err := ctl.Suspend(name, dm.SuspendOptions{NoLockFS: true})
	_, failed := ctl.Resume(name) // also after a failure: the device may be suspended by then
	return errors.Join(err, failed)
}
