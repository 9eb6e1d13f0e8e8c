// Package pairs makes mirrors of sources that are named by path.
//
// For most uses, call [Mirror] with the path of a source and that of a target. [Plan]
// tells what it would do, [Look] how a mirror is, [Mirrors] that of all that are known
// here, [Verify] whether one is what its checksums say.
//
// The package owns everything around package transfer that takes a path: it opens
// sources and targets, chooses tracker and view, finds the folder where a mirror's
// files lie, and refuses targets whose content must not be lost: a target that is in use
// (inuse.ErrInUse), is the source or lies on it, or holds something else than a mirror of
// the source (ErrRefused). Nothing has been written to a target that is refused. It finds sources by
// their UUID, label or mount point, and refuses to copy a part of what lies on several
// devices (ErrPart). [Survey] tells how it would judge the devices of this machine.
//
// The files beside an image DST lie in the folder DST.tidemark; those of a device
// in a folder of StateDir that is named after the device itself, not after its
// path, so that a disk that comes up under another name keeps its mirror. The folder
// "mirrors" of StateDir has the list of all mirrors that runs on this machine have made
// or updated.
//
// A mirror is locked while it is worked on; functions on different mirrors may
// run at the same time. The program's main must call reexec.Main first.
package pairs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/time/rate"

	"tidemark/track/bpf"
	"tidemark/transfer"
	"tidemark/view"
)

var (
	// ErrRefused says that a target holds, or may hold, what must not be lost.
	ErrRefused = errors.New("refused")
	// ErrTooSmall, ErrOwnSource and ErrHoldsOther wrap ErrRefused, and say why. Only what
	// ErrHoldsOther refuses is done with Options.Overwrite, or with Adopt.
	ErrTooSmall = fmt.Errorf("%w: it is too small", ErrRefused)
	// ErrNoDevice says that a target is named like a device, and is none: a file there would
	// lie in memory, and be gone with the next boot. Options.Overwrite does not help.
	ErrNoDevice   = fmt.Errorf("%w: it is no device", ErrRefused)
	ErrOwnSource  = fmt.Errorf("%w: it lies on a filesystem of the source", ErrRefused)
	ErrHoldsOther = fmt.Errorf("%w: it holds something else", ErrRefused)
	// ErrUsedSince says that somebody has used a mirror since the last run, which a run would
	// revert. It wraps ErrRefused; Options.Overwrite reverts it.
	ErrUsedSince = fmt.Errorf("%w: it was used since the last run", ErrRefused)
	// ErrPart says that a filesystem, or a device, lies on the sources and on other devices
	// too; it wraps ErrRefused.
	ErrPart = fmt.Errorf("%w: not all of it would be copied", ErrRefused)
	// ErrSource says that a source cannot be opened.
	ErrSource = errors.New("source")
	// ErrImmutable says that an image has an attribute that keeps everybody from writing to
	// it.
	ErrImmutable = errors.New("it is immutable, or may only be appended to")
	// ErrNoSize says that a device has no content for now, which is no reason to take it
	// for one that has shrunk.
	ErrNoSize = errors.New("the device has no size (detached, no medium?)")
	// ErrNoMirror says that nothing is known of a target.
	ErrNoMirror = errors.New("no mirror")
	// ErrPending says that a committed update has not reached a target yet.
	ErrPending = errors.New("an update that was committed waits to be finished")
)

// DefaultStateDir is where the files beside targets that are devices lie.
const DefaultStateDir = "/var/lib/tidemark"

// ForcedFreeze is how long a freeze lasts at most when it is forced: even then a
// target that never answers must not hold a filesystem for ever.
const ForcedFreeze = 10 * time.Minute

// Pair names a source, a block device or image file (see SourcePath), and its target, an
// image file, which is made if need be, or a block device (see TargetPath).
type Pair struct{ Source, Target string }

// Options say how to mirror. The zero value works.
type Options struct {
	StateDir string      // DefaultStateDir when empty
	Track    bpf.Options // where and how to track
	Tracker  string      // "auto" (or ""), "bpf", "era", "cow:" with a store, or "scan"
	View     string      // "auto" (or ""), "freeze" or "offline"
	Hooks    view.Hooks
	// MaxFreeze bounds the frozen time; 0 stands for transfer.DefaultMaxFreeze.
	// ForceFreeze goes on when it is over.
	MaxFreeze   time.Duration
	ForceFreeze bool
	BytesPerSec int64 // read while nobody waits for the view; 0 is no limit
	Overwrite   bool  // what a target holds or is the mirror of, and what is known of it
	Adopt       bool  // a target that is mostly the same as its source
	// Whole adds a pair for each device that a filesystem on the sources lies on as well.
	// ForcePart copies a part of it. With neither the run is refused with ErrPart.
	Whole, ForcePart bool
	Progress         func(transfer.Event)
}

func (o Options) withDefaults() Options {
	if o.StateDir == "" {
		o.StateDir = DefaultStateDir
	}
	if o.MaxFreeze == 0 {
		o.MaxFreeze = transfer.DefaultMaxFreeze
	}
	if o.Progress == nil {
		o.Progress = func(transfer.Event) {}
	}
	return o
}

func (o Options) note(format string, args ...any) {
	o.Progress(transfer.Event{Text: fmt.Sprintf(format, args...)})
}

// Mirror brings the targets of all pairs to one instant of their sources. There
// is a report for each pair unless the run failed before it began. ErrPart after reports
// with the outcome "ok" says that a device was added to a source's filesystem meanwhile.
func Mirror(ctx context.Context, pairs []Pair, o Options) (reports []transfer.Report, err error) {
	s := &session{o: o.withDefaults()}
	defer func() { err = s.end(err, func(text string) { s.o.note("%s", text) }) }()
	provider, err := s.look(ctx, pairs)
	if err != nil {
		return nil, err
	}
	var ready []*transfer.Pair
	for _, e := range s.ends {
		p, err := s.open(ctx, e)
		if err != nil {
			return nil, err
		}
		ready = append(ready, p)
	}
	s.publish()
	reports, err = transfer.Run(ctx, ready, transfer.Options{
		View: provider, MaxFreeze: s.o.MaxFreeze, ForceFreeze: s.o.ForceFreeze,
		Limit: limiter(o.BytesPerSec), Progress: s.o.Progress, Frozen: s.frozen,
	})
	if err == nil {
		err = s.stillWhole()
	}
	return reports, err
}

// Plan decides as Mirror does and tells what that would read, without starting,
// making or writing anything.
func Plan(ctx context.Context, pairs []Pair, o Options) (reports []transfer.Report, err error) {
	s := &session{o: o.withDefaults(), dry: true}
	defer func() { err = errors.Join(err, s.close()) }()
	provider, err := s.look(ctx, pairs)
	if err != nil {
		return nil, err
	}
	var planned []*transfer.Pair
	for _, e := range s.ends {
		p, err := s.plan(ctx, e)
		if err != nil {
			return nil, err
		}
		planned = append(planned, p)
	}
	return transfer.Plan(ctx, planned, provider)
}

// limitBurst is what may be read at once under a limit, in bytes.
const limitBurst = 1 << 20

func limiter(bytesPerSec int64) *rate.Limiter {
	if bytesPerSec == 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(bytesPerSec), limitBurst)
}
