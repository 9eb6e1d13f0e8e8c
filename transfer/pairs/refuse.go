package pairs

import (
	"errors"
	"fmt"
	"strings"

	"tidemark/block"
	"tidemark/format/redo"
	"tidemark/format/state"
	"tidemark/format/sums"
	"tidemark/linux/mounts"
	"tidemark/transfer/inuse"
	"tidemark/transfer/transaction"
)

// refusal is why a target must not be written to.
type refusal struct {
	path  string
	class error // ErrHoldsOther, for example
	text  string
}

func (r *refusal) Error() string { return fmt.Sprintf("target: %s: %v: %s", r.path, r.class, r.text) }
func (r *refusal) Unwrap() error { return r.class }

func (t *target) refused(class error, format string, args ...any) error {
	return &refusal{t.path, class, fmt.Sprintf(format, args...)}
}

// refuseNoDevice refuses a file, or one that would be made, among the devices: a name that
// was mistyped, or a disk that is gone.
func (t *target) refuseNoDevice() error {
	if t.device || !strings.HasPrefix(t.path, "/dev/") || strings.HasPrefix(t.path, "/dev/shm/") {
		return nil
	}
	return t.refused(ErrNoDevice, "a file of that name would lie in memory, and be gone with the next boot")
}

// judge finds out what a target is to its source, and refuses (ErrRefused) what must
// not be lost. With Overwrite nothing is refused that this target holds, but only what
// does not fit; with Adopt what is mostly the same as the source is not. The error is one
// of package state's when what is known of the target cannot be read.
func (t *target) judge(src *source, o Options) error {
	if err := t.refuseNoDevice(); err != nil {
		return err
	}
	if t.device && t.size < src.Size() {
		return t.refused(ErrTooSmall, "it has %s, %s has %s", exactly(t.size), src.Path(), exactly(src.Size()))
	}
	t.is = t.standing(src)
	why := t.refuse(src)
	switch {
	case why == nil || t.is == unusable && !cannotBeUsed(t.stateErr):
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
func (t *target) overrides(why error) {
	var r *refusal
	if t.forced = ""; errors.As(why, &r) {
		t.forced = r.text
	}
}

// standing is what a target is to its source.
func (t *target) standing(src *source) disposition {
	st := t.state
	switch {
	case t.stateErr != nil && !errors.Is(t.stateErr, ErrNoMirror):
		return unusable
	case t.stateErr != nil && t.empty():
		return fresh
	case t.stateErr != nil:
		return foreign
	}
	same := sameOrigin(st.Source, src.origin())
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
func (t *target) refuse(src *source) error {
	switch t.is {
	case fresh:
		return nil
	case foreign:
		return t.refuseForeign(src)
	case unusable:
		return fmt.Errorf("target: %s: %w", t.path, t.stateErr)
	}
	return t.refuseOther(src)
}

// refuseUsed protects the sources from being written to, and the users of the target.
func (t *target) refuseUsed(sources []*source) error {
	for _, src := range sources {
		if same, err := inuse.Reaches(t.path, src.Device); err != nil {
			return fmt.Errorf("target: %w", err)
		} else if same {
			return t.refused(ErrRefused, "it is the source, or lies on it")
		}
	}
	return targeted(inuse.Held(t.path))
}

// refuseOpeners protects programs that work with the target as with any file: a virtual
// machine, for example.
func (t *target) refuseOpeners() error { return targeted(inuse.Opened(t.path)) }

// targeted says of an error that it is about a target.
func targeted(err error) error {
	if err != nil {
		err = fmt.Errorf("target: %w", err)
	}
	return err
}

// refuseForeign protects what is not a mirror of ours: a device with a filesystem, or an
// image with content, whatever its size.
func (t *target) refuseForeign(src *source) error {
	switch {
	case t.device:
	case t.size != src.Size():
		return t.refused(ErrHoldsOther, "it is no copy of %s, having %s and not %s", src.Path(), exactly(t.size), exactly(src.Size()))
	default:
		return t.refused(ErrHoldsOther, "it exists, and is not known to be a copy of %s", src.Path())
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
		return t.refused(ErrHoldsOther, "it holds %s", found[0])
	}
	return nil
}

// refuseOther protects the mirror of another source, and the end of the mirror of
// a source that was larger.
func (t *target) refuseOther(src *source) error {
	st := t.state
	if now := src.origin(); !sameOrigin(st.Source, now) {
		return t.refused(ErrHoldsOther, "it is a mirror of %s, not of %s", describe(st.Source), describe(now))
	}
	if st.Complete && src.Size() < st.Size {
		return t.refused(ErrHoldsOther, "%s has shrunk from %s to %s, and the rest would be cut off", src.Path(), exactly(st.Size), exactly(src.Size()))
	}
	return t.refuseUsedSince()
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
