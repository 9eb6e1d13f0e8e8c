package target

import (
	"errors"
	"fmt"
	"strings"

	"tidemark/block"
	"tidemark/format/redo"
	"tidemark/format/state"
	"tidemark/format/sums"
	"tidemark/transfer/inuse"
	"tidemark/transfer/transaction"
)

// Refusal is why a target must not be written to.
type Refusal struct {
	path  string
	class error // ErrHoldsOther, for example
	Text  string
}

// Error names the target, the class and why.
func (r *Refusal) Error() string { return fmt.Sprintf("target: %s: %v: %s", r.path, r.class, r.Text) }

// Unwrap returns the class.
func (r *Refusal) Unwrap() error { return r.class }

// Refused returns a Refusal, which wraps class.
func (t *Target) Refused(class error, format string, args ...any) error {
	return &Refusal{t.Path, class, fmt.Sprintf(format, args...)}
}

// RefuseNoDevice refuses a file, or one that would be made, among the devices: a name that
// was mistyped, or a disk that is gone.
func (t *Target) RefuseNoDevice() error {
	if t.Device || !strings.HasPrefix(t.Path, "/dev/") || strings.HasPrefix(t.Path, "/dev/shm/") {
		return nil
	}
	return t.Refused(ErrNoDevice, "a file of that name would lie in memory, and be gone with the next boot")
}

// RefuseUsed protects the sources from being written to, and the users of the target.
func (t *Target) RefuseUsed(sources ...*block.Device) error {
	for _, src := range sources {
		if same, err := inuse.Reaches(t.Path, src); err != nil {
			return fmt.Errorf("target: %w", err)
		} else if same {
			return t.Refused(ErrRefused, "it is the source, or lies on it")
		}
	}
	return targeted(inuse.Held(t.Path))
}

// RefuseOpeners protects programs that work with the target as with any file: a virtual
// machine, for example.
func (t *Target) RefuseOpeners() error { return targeted(inuse.Opened(t.Path)) }

// RefuseMirror refuses a target that is a mirror, and would no longer be one: ErrMirror. It is
// asked again when the folder is locked: another run may have made one meanwhile.
func (t *Target) RefuseMirror() error {
	switch _, err := KnownIn(t.Folder, t.Path); {
	case err == nil:
		return fmt.Errorf("target: %s: %w", t.Path, ErrMirror)
	case !errors.Is(err, ErrNoMirror):
		return targeted(err)
	}
	return nil
}

// targeted says of an error that it is about a target.
func targeted(err error) error {
	if err != nil {
		err = fmt.Errorf("target: %w", err)
	}
	return err
}

// CannotBeUsed reports whether err says that what is known of a mirror cannot be used,
// so that it may be built anew.
func CannotBeUsed(err error) bool {
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
