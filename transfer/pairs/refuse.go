package pairs

import (
	"errors"
	"fmt"
	"os"

	"tidemark/block"
	"tidemark/format/redo"
	"tidemark/format/state"
	"tidemark/format/sums"
	"tidemark/linux/mounts"
	"tidemark/linux/sysfs"
	"tidemark/transfer/transaction"
)

// judge finds out what a target is to its source, and refuses (ErrRefused) what must
// not be lost. With overwrite nothing is refused that this target holds, but only what
// does not fit. The error is one of package state's when what is known of the target
// cannot be read.
func (t *target) judge(src *source, overwrite bool) error {
	if t.device && t.size < src.Size() {
		return fmt.Errorf("target: %s: %w: it has %d bytes, %s has %d", t.path, ErrTooSmall, t.size, src.Path(), src.Size())
	}
	st, origin := t.state, src.origin()
	switch known := t.stateErr == nil; {
	case known && !overwrite:
		if err := t.refuseOther(src); err != nil {
			return err
		}
	case known:
	case !errors.Is(t.stateErr, ErrNoMirror):
		if t.is = unusable; overwrite && cannotBeUsed(t.stateErr) {
			return nil
		}
		return fmt.Errorf("target: %s: %w", t.path, t.stateErr)
	case t.empty():
		t.is = fresh
		return nil
	default:
		if t.is = foreign; overwrite {
			return nil
		}
		return t.refuseForeign(src)
	}
	same := sameOrigin(st.Source, origin)
	switch {
	case t.empty() && st.Size > 0 && (st.Complete || st.Copied > 0):
		t.is = gone
	case !st.Complete && (!same || st.Size != src.Size()):
		t.is = restarts
	case !st.Complete:
		t.is = unfinished
	case !same:
		t.is = otherOrigin
	default:
		t.is = ours
	}
	return nil
}

// refuseUsed protects the sources from being written to, and the users of the target.
func (t *target) refuseUsed(sources []*source) error {
	if !t.exists {
		return nil
	}
	table, err := mounts.Read()
	if err != nil {
		return fmt.Errorf("target: %w", err)
	}
	for _, src := range sources {
		if same, err := t.reaches(src, table); err != nil {
			return fmt.Errorf("target: %w", err)
		} else if same {
			return fmt.Errorf("target: %s: %w: it is the source, or lies on it", t.path, ErrRefused)
		}
	}
	use, err := table.UseOf(t.path)
	if err != nil {
		return fmt.Errorf("target: %w", err)
	}
	if use.InUse() {
		return fmt.Errorf("target: %s: %w (%s)", t.path, ErrInUse, use)
	}
	return nil
}

// reaches reports whether a write to the target is a write to the source: they
// are the same, or the target is a device that is made of the source.
func (t *target) reaches(src *source, table *mounts.Table) (bool, error) {
	if !t.device {
		a, err := src.File().Stat()
		if err != nil {
			return false, err
		}
		b, err := os.Stat(t.path)
		return err == nil && os.SameFile(a, b), err
	}
	if src.IsDevice() && overlaps(src.Identity(), t.id) {
		return true, nil
	}
	roots := []sysfs.Dev{src.Identity().Dev()}
	if !src.IsDevice() {
		var err error
		if roots, err = table.LoopsOver(src.Path()); err != nil {
			return false, err
		}
	}
	for _, root := range roots {
		above, err := table.Above(root)
		if err != nil || above[t.id.Dev()] {
			return true, err
		}
	}
	return false, nil
}

// overlaps reports whether two devices share bytes of one disk.
func overlaps(a, b block.Identity) bool {
	return a.DiskMajor == b.DiskMajor && a.DiskMinor == b.DiskMinor &&
		a.Start < b.Start+b.Size && b.Start < a.Start+a.Size
}

// refuseForeign protects what is not a mirror of ours: a device with a filesystem,
// or an image that cannot be an older copy of the source because its size differs.
func (t *target) refuseForeign(src *source) error {
	if !t.device && t.size != src.Size() {
		return fmt.Errorf("target: %s: %w: it is no copy of %s, having %d bytes and not %d", t.path, ErrHoldsOther, src.Path(), t.size, src.Size())
	}
	if !t.device {
		return nil
	}
	d, err := block.Open(t.path, block.Options{})
	if err != nil {
		return fmt.Errorf("target: %w", err)
	}
	defer d.Close()
	found, err := mounts.Probe(d, d.Size())
	if err != nil {
		return fmt.Errorf("target: %s: %w", t.path, err)
	}
	if len(found) > 0 {
		return fmt.Errorf("target: %s: %w: it holds %s", t.path, ErrHoldsOther, found[0])
	}
	return nil
}

// refuseOther protects the mirror of another source, and the end of the mirror of
// a source that was larger.
func (t *target) refuseOther(src *source) error {
	st := t.state
	if now := src.origin(); !sameOrigin(st.Source, now) {
		return fmt.Errorf("target: %s: %w: it is a mirror of %s, not of %s", t.path, ErrHoldsOther, describe(st.Source), describe(now))
	}
	if st.Complete && src.Size() < st.Size {
		return fmt.Errorf("target: %s: %w: %s has shrunk from %d to %d bytes, and the rest would be cut off",
			t.path, ErrHoldsOther, src.Path(), st.Size, src.Size())
	}
	return nil
}

// cannotBeUsed reports whether err says that what is known of a mirror cannot be used,
// so that it may be built anew.
func cannotBeUsed(err error) bool {
	for _, class := range []error{
		state.ErrDamaged, state.ErrNotOurs, sums.ErrDamaged, sums.ErrNotOurs, redo.ErrDamaged, redo.ErrNotOurs,
		transaction.ErrOther, transaction.ErrOtherOwner,
	} {
		if errors.Is(err, class) {
			return true
		}
	}
	return false
}
