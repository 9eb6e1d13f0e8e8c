package pairs

import (
	"errors"
	"fmt"
	"io/fs"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/transfer/mirror"
	"tidemark/transfer/target"
	"tidemark/transfer/traces"
	"tidemark/transfer/transaction"
	"tidemark/words"
)

// refuseUsedSince protects a mirror of the source that somebody has used since the last
// run: a filesystem was mounted read-write or made, or the disk was partitioned. A run
// would revert that. A target that looks as it was left is not read. Other changes are
// found, and repaired, by the run. Of a first copy that was stopped in good order what was
// copied is looked at; of one that was cut off that may be torn by itself.
func (t *goal) refuseUsedSince() error {
	why, err := t.suspect()
	told := transaction.Stamp(t.state.Target).Telling()
	if why == "" || err != nil || t.pending || t.is != ours && !(t.is == unfinished && told) {
		return err
	}
	d, err := block.Open(t.Path, block.Options{})
	if err != nil {
		return fmt.Errorf("target: %w", err)
	}
	defer d.Close()
	disk := transaction.Disk{Device: d}
	transaction.Reread(disk)
	found, err := traces.Find(d, min(d.Size(), t.state.Size), t.state.BlockSize, told)
	if err != nil {
		return fmt.Errorf("target: %s: %w", t.Path, err)
	}
	t.vague = nil
	if told { // else the last run was cut off, or verify found damage
		t.vague = found.Vague
	}
	sure := traces.Set(found.Sure)
	if !t.state.Complete {
		sure = sure.Clip(extent.Extent{Len: t.state.Copied})
	}
	bad, err := mirror.Differ(t.Folder, t.state, disk, sure)
	if err == nil && bad.Empty() || target.CannotBeUsed(err) || errors.Is(err, fs.ErrNotExist) {
		return nil // of sums that are damaged or missing, opening it tells
	}
	if err != nil {
		return fmt.Errorf("target: %s: %w", t.Path, err)
	}
	return t.usedSince(found.Sure, bad)
}

// usedSince names the first trace that was changed, nil if none was.
func (t *goal) usedSince(of []traces.Trace, bad extent.Set) error {
	after := "the copy of " + words.Time(t.state.Time)
	if !t.state.Complete {
		after = "its first copy was stopped"
	}
	if tr, ok := traces.Changed(of, bad); ok {
		return t.Refused(ErrUsedSince, "after %s %s changed, and a run would revert that", after, tr.What)
	}
	return nil
}

// guard refuses what a check of all of the target has found in a place that cannot be
// looked into.
func (t *goal) guard(o Options) func(bad extent.Set) error {
	if o.Overwrite || len(t.vague) == 0 {
		return nil
	}
	return func(bad extent.Set) error { return t.usedSince(t.vague, bad) }
}
