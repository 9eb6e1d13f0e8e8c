package pairs

import (
	"errors"
	"fmt"

	"tidemark/block"
	"tidemark/linux/mounts"
	"tidemark/transfer/origin"
	"tidemark/transfer/target"
	"tidemark/words"
)

// decide finds out what a target is to its source, and refuses (target.ErrRefused) what must
// not be lost. With Overwrite nothing is refused that this target holds, but only what
// does not fit; with Adopt what is mostly the same as the source is not. The error is one
// of package state's when what is known of the target cannot be read.
func (t *goal) decide(src *block.Device, o Options) error {
	if err := t.RefuseNoDevice(); err != nil {
		return err
	}
	if t.Device && t.Size < src.Size() {
		return t.Refused(target.ErrTooSmall, "it has %s, %s has %s", words.Exactly(t.Size), src.Path(), words.Exactly(src.Size()))
	}
	t.is = t.standing(src)
	why := t.refuse(src)
	switch {
	case why == nil || t.is == unusable && !target.CannotBeUsed(t.stateErr):
		return why
	case o.Overwrite:
		t.overrides(why)
		return nil
	case o.Adopt && !errors.Is(why, ErrUsedSince):
		return t.adopt(src, why)
	}
	return why
}

// overrides remembers what --force does away with, for those who are told.
func (t *goal) overrides(why error) {
	var r *target.Refusal
	if t.forced = ""; errors.As(why, &r) {
		t.forced = r.Text
	}
}

// standing is what a target is to its source.
func (t *goal) standing(src *block.Device) disposition {
	st := t.state
	switch {
	case t.stateErr != nil && !errors.Is(t.stateErr, target.ErrNoMirror):
		return unusable
	case t.stateErr != nil && t.empty():
		return fresh
	case t.stateErr != nil:
		return foreign
	}
	same := origin.Same(st.Source, origin.OfDevice(src))
	switch {
	case t.empty() && st.Size > 0 && (st.Complete || st.Copied > 0):
		return gone
	case !st.Complete && (!same || st.Size != src.Size()):
		return restarts
	case !st.Complete:
		return unfinished
	case !same:
		return otherOrigin
	}
	return ours
}

// refuse protects what a target holds.
func (t *goal) refuse(src *block.Device) error {
	switch t.is {
	case fresh:
		return nil
	case foreign:
		return t.refuseForeign(src)
	case unusable:
		return fmt.Errorf("target: %s: %w", t.Path, t.stateErr)
	}
	return t.refuseOther(src)
}

// refuseForeign protects what is not a mirror of ours: a device with a filesystem, or an
// image with content, whatever its size.
func (t *goal) refuseForeign(src *block.Device) error {
	switch {
	case t.Device:
	case t.Size != src.Size():
		return t.Refused(target.ErrHoldsOther, "it is no copy of %s, having %s and not %s", src.Path(), words.Exactly(t.Size), words.Exactly(src.Size()))
	default:
		return t.Refused(target.ErrHoldsOther, "it exists, and is not known to be a copy of %s", src.Path())
	}
	d, err := block.Open(t.Path, block.Options{})
	if err != nil {
		return fmt.Errorf("target: %w", err)
	}
	defer d.Close()
	found, err := mounts.Probe(d, d.Size())
	if err != nil {
		return fmt.Errorf("target: %s: %w", t.Path, err)
	}
	if len(found) > 0 {
		return t.Refused(target.ErrHoldsOther, "it holds %s", found[0])
	}
	return nil
}

// refuseOther protects the mirror of another source, and the end of the mirror of
// a source that was larger.
func (t *goal) refuseOther(src *block.Device) error {
	st := t.state
	if now := origin.OfDevice(src); !origin.Same(st.Source, now) {
		return t.Refused(target.ErrHoldsOther, "it is a mirror of %s, not of %s", origin.Describe(st.Source), origin.Describe(now))
	}
	if st.Complete && src.Size() < st.Size {
		return t.Refused(target.ErrHoldsOther, "%s has shrunk from %s to %s, and the rest would be cut off", src.Path(), words.Exactly(st.Size), words.Exactly(src.Size()))
	}
	return t.refuseUsedSince()
}
