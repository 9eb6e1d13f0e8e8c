package era

import (
	"errors"

	"tidemark/format/pdata"
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
	ErrNoSpace = pdata.ErrNoSpace
	// ErrXML means input that is not the XML of era_dump.
	ErrXML = errors.New("not era_dump XML")
)

// Severity orders faults by what they cost.
type Severity = pdata.Severity

// Fault is one thing wrong with the metadata, at one place. As an error it wraps
// ErrDamaged, or the cause when the block could not be read at all.
type Fault = pdata.Fault

const (
	// SeverityLost faults hide changes: a dump or a query cannot be trusted.
	SeverityLost = pdata.Lost
	// SeveritySpace faults are in the space map: reading is right, but the
	// kernel may overwrite blocks that are in use.
	SeveritySpace = pdata.Space
	// SeverityMinor faults cost nothing but space or speed.
	SeverityMinor = pdata.Minor
)

// ours is what faults of this package say and wrap.
var ours = pdata.Format{Name: "era", Damaged: ErrDamaged}

func damage(a Addr, object, format string, args ...any) *Fault {
	return ours.Damage(a, object, format, args...)
}
