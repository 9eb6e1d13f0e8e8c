package pdata

import (
	"errors"
	"fmt"
)

// Severity orders faults by what they cost.
type Severity uint8

const (
	// Lost faults hide content: what is read cannot be trusted.
	Lost Severity = iota + 1
	// Space faults are in a space map: reading is right, but the kernel may overwrite blocks
	// that are in use.
	Space
	// Minor faults cost nothing but space or speed.
	Minor
)

func (s Severity) String() string {
	switch s {
	case Lost:
		return "lost"
	case Space:
		return "space"
	case Minor:
		return "minor"
	}
	return "unknown"
}

// MarshalText makes a severity a word in JSON.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Fault is one thing wrong with the metadata, at one place. As an error it wraps the
// Format's Damaged, or the cause when the block could not be read at all.
type Fault struct {
	Severity Severity `json:"severity"`
	Offset   int64    `json:"offset"` // of the block, in bytes
	Object   string   `json:"object"` // what the block is or should be
	Problem  string   `json:"problem"`
	Effect   string   `json:"effect,omitempty"` // what cannot be read for it

	format string
	cause  error
}

func (f *Fault) Error() string {
	s := fmt.Sprintf("%s: %s at byte %d: %s", f.format, f.Object, f.Offset, f.Problem)
	if f.Effect != "" {
		s += " (" + f.Effect + ")"
	}
	return s
}

func (f *Fault) Unwrap() error { return f.cause }

// AsFault returns err as a fault, or nil when it is something else, such as the refusal of a
// callback, that must end the work.
func AsFault(err error) *Fault {
	var f *Fault
	if errors.As(err, &f) {
		return f
	}
	return nil
}

// Format is whose metadata it is.
type Format struct {
	Name    string // begins messages
	Damaged error  // is wrapped by faults
}

// Damage returns a fault of the severity Lost.
func (f Format) Damage(a Addr, object, format string, args ...any) *Fault {
	return &Fault{
		Severity: Lost, Offset: a.Offset(), Object: object,
		Problem: fmt.Sprintf(format, args...), format: f.Name, cause: f.Damaged,
	}
}

// Unreadable returns the fault of a block that could not be read.
func (f Format) Unreadable(a Addr, object string, err error) *Fault {
	return &Fault{Severity: Lost, Offset: a.Offset(), Object: object, Problem: err.Error(), format: f.Name, cause: err}
}

// Verify checks what every block has: its checksum and its own address.
func (f Format) Verify(a Addr, k Kind, b []byte) error {
	if got, want := le.Uint32(b), Checksum(k, b); got != want {
		return f.Damage(a, k.String(), "checksum %#08x, want %#08x", got, want)
	}
	if own := le.Uint64(b[k.blocknr():]); own != uint64(a) {
		return f.Damage(a, k.String(), "written for block %d, found at block %d", own, uint64(a))
	}
	return nil
}
