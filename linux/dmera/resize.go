package dmera

import (
	"errors"
	"fmt"

	"tidemark/linux/dm"
)

// reload gives the device a table of that many sectors. The era target reads its
// metadata when a table is loaded, so it must be suspended before: what the old
// table still wrote would be lost to the new one otherwise.
func reload(ctl *dm.Control, info dm.Info, sectors uint64) error {
	t, err := readTable(ctl, info.Name)
	if err != nil {
		return err
	}
	t.sectors = sectors
	if _, err := ctl.Suspend(info.Name, dm.SuspendOptions{NoLockFS: true}); err != nil {
		_, failed := ctl.Resume(info.Name)
		return errors.Join(err, failed)
	}
	_, err = ctl.Load(info.Name, []dm.Target{t.target()}, dm.LoadOptions{})
	_, pending, failed := ctl.StartResume(info.Name)
	if failed != nil {
		// The old table is gone, and what the new one began must not be overtaken
		// by another: it stays suspended. No write is lost; they wait.
		failed = fmt.Errorf("%w; the device is suspended: when the reason is gone, resume it with \"dmsetup resume %s\"", failed, info.Name)
		return errors.Join(err, failed)
	}
	if off := queueOf(info.Dev()).forbidDiscards(); off != nil {
		err = errors.Join(err, off)
	}
	return errors.Join(err, pending.Settle())
}
