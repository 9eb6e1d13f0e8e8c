package era

import (
	"errors"
	"fmt"
)

// Errors a caller acts on. Every error of this package about the content of
// metadata wraps one of them; all others come from the reader or writer.
var (
	// ErrNotEra means that the input is not dm-era metadata at all, or is
	// still unformatted.
	ErrNotEra = errors.New("not dm-era metadata")
	// ErrDamaged means dm-era metadata that contradicts itself.
	ErrDamaged = errors.New("metadata is damaged")
	// ErrNewer means metadata of a version this package does not know.
	ErrNewer = errors.New("metadata is newer than this program")
	// ErrNoSnapshot means that no metadata snapshot is held.
	ErrNoSnapshot = errors.New("no metadata snapshot is held")
	// ErrSnapshotGone means that the metadata snapshot was dropped, and
	// perhaps taken again, while it was being read.
	ErrSnapshotGone = errors.New("the metadata snapshot was dropped during the read")
	// ErrNoSpace means that the metadata does not fit in the target.
	ErrNoSpace = errors.New("metadata device is too small")
	// ErrXML means input that is not the XML of era_dump.
	ErrXML = errors.New("not era_dump XML")
)

// Severity orders faults by what they cost.
type Severity uint8

const (
	// SeverityLost faults hide changes: a dump or a query cannot be trusted.
	SeverityLost Severity = iota + 1
	// SeveritySpace faults are in the space map: reading is right, but the
	// kernel may overwrite blocks that are in use.
	SeveritySpace
	// SeverityMinor faults cost nothing but space or speed.
	SeverityMinor
)

func (s Severity) String() string {
	switch s {
	case SeverityLost:
		return "lost"
	case SeveritySpace:
		return "space"
	case SeverityMinor:
		return "minor"
	}
	return "unknown"
}

// MarshalText makes a severity a word in JSON.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Fault is one thing wrong with the metadata, at one place. As an error it
// wraps ErrDamaged, or the cause when the block could not be read at all.
type Fault struct {
	Severity Severity `json:"severity"`
	Offset   int64    `json:"offset"` // of the block, in bytes
	Object   string   `json:"object"` // what the block is or should be
	Problem  string   `json:"problem"`
	Effect   string   `json:"effect,omitempty"` // what cannot be read for it
	cause    error
}

func (f *Fault) Error() string {
	s := fmt.Sprintf("era: %s at byte %d: %s", f.Object, f.Offset, f.Problem)
	if f.Effect != "" {
		s += " (" + f.Effect + ")"
	}
	return s
}

func (f *Fault) Unwrap() error { return f.cause }

func damage(a Addr, object, format string, args ...any) *Fault {
	return &Fault{
		Severity: SeverityLost, Offset: a.Offset(), Object: object,
		Problem: fmt.Sprintf(format, args...), cause: ErrDamaged,
	}
}

func unreadable(a Addr, object string, err error) *Fault {
	return &Fault{Severity: SeverityLost, Offset: a.Offset(), Object: object, Problem: err.Error(), cause: err}
}

// asFault returns err as a fault, or nil when it is something else, such as the
// refusal of a callback, that must end the work.
func asFault(err error) *Fault {
	var f *Fault
	if errors.As(err, &f) {
		return f
	}
	return nil
}
