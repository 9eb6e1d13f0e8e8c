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
	"tidemark/transfer/mirror"
	"tidemark/transfer/transaction"
)

// refuse returns an error wrapping ErrRefused when the target must not be written
// to, and one of package sidecar's when what is known of it cannot be read. With
// overwrite only what would destroy something in use is refused.
func (t *target) refuse(src *source, sources []*source, overwrite bool) error {
	if t.exists {
		if err := t.refuseUsed(sources); err != nil {
			return err
		}
	}
	st, err := readState(t.folder)
	switch {
	case errors.Is(err, ErrNoMirror):
		t.foreign = t.exists && !t.empty()
		return t.refuseForeign(src, overwrite)
	case err != nil && overwrite && spoilt(err):
		t.rebuild = true
		return nil
	case err != nil:
		return fmt.Errorf("target: %s: %w", t.path, err)
	}
	pending, err := mirror.PendingAfter(t.folder, st)
	if err != nil || pending {
		return nil // opening it finishes that, or says why not; what it then is, is judged again
	}
	return t.judge(src, st, overwrite)
}

// judge refuses, or notes, what is the mirror of another source.
func (t *target) judge(src *source, st state.State, overwrite bool) error {
	if overwrite {
		t.stranger = !sameOrigin(st.Source, src.origin())
		return nil
	}
	return t.refuseOther(src, st)
}

// refuseUsed protects the sources from being written to, and whoever uses the
// target.
func (t *target) refuseUsed(sources []*source) error {
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
	if src.IsDevice() && overlaps(src.id, t.id) {
		return true, nil
	}
	roots := []mounts.Dev{{Major: src.id.Major, Minor: src.id.Minor}}
	if !src.IsDevice() {
		var err error
		if roots, err = table.LoopsOver(src.Path()); err != nil {
			return false, err
		}
	}
	for _, root := range roots {
		above, err := table.Above(root)
		if err != nil || above[mounts.Dev{Major: t.id.Major, Minor: t.id.Minor}] {
			return true, err
		}
	}
	return false, nil
}

// refuseForeign protects what is not a mirror of ours: a device with a filesystem,
// or an image that cannot be an older copy of the source because its size differs.
func (t *target) refuseForeign(src *source, overwrite bool) error {
	if !t.exists {
		return nil
	}
	d, err := block.Open(t.path, block.Options{})
	if err != nil {
		return fmt.Errorf("target: %w", err)
	}
	defer d.Close()
	if t.device && d.Size() < src.Size() {
		return fmt.Errorf("target: %s: %w: it has %d bytes, %s has %d", t.path, ErrTooSmall, d.Size(), src.Path(), src.Size())
	}
	if overwrite {
		return nil
	}
	if !t.device {
		if d.Size() != 0 && d.Size() != src.Size() {
			return fmt.Errorf("target: %s: %w: it is no copy of %s, having %d bytes and not %d", t.path, ErrHoldsOther, src.Path(), d.Size(), src.Size())
		}
		return nil
	}
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
func (t *target) refuseOther(src *source, st state.State) error {
	if now := src.origin(); !sameOrigin(st.Source, now) {
		return fmt.Errorf("target: %s: %w: it is a mirror of %s, not of %s", t.path, ErrHoldsOther, describe(st.Source), describe(now))
	}
	if st.Complete && src.Size() < st.Size {
		return fmt.Errorf("target: %s: %w: %s has shrunk from %d to %d bytes, and the rest would be cut off",
			t.path, ErrHoldsOther, src.Path(), st.Size, src.Size())
	}
	return nil
}

// sameOrigin compares what names a medium best: what it is, or else its path.
func sameOrigin(a, b state.Source) bool {
	if a.Start != b.Start {
		return false
	}
	if a.Stable != "" && b.Stable != "" && a.Stable == b.Stable {
		return true
	}
	return a.Path == b.Path && (a.Stable == "" || b.Stable == "" || volatile(a.Stable) || volatile(b.Stable))
}

func describe(s state.Source) string {
	if s.Stable == "" {
		return s.Path
	}
	return fmt.Sprintf("%s (%s)", s.Path, s.Stable)
}

// spoilt reports whether err says that what is known of a mirror cannot be used,
// so that it may be built anew.
func spoilt(err error) bool {
	for _, class := range []error{
		state.ErrDamaged, state.ErrNotOurs, sums.ErrDamaged, sums.ErrNotOurs, redo.ErrDamaged, redo.ErrNotOurs,
		transaction.ErrOther, transaction.ErrForeign,
	} {
		if errors.Is(err, class) {
			return true
		}
	}
	return false
}
