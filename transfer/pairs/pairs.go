// Package pairs makes mirrors of sources that are named by path, and points of them in a vault.
//
// For most uses, call [Mirror] with the path of a source and that of a target, or [Backup] with an
// open vault. [Plan] and [PlanBackup] tell what they would do, and [Recover] brings to an end what a crash left, without the source.
//
// The package owns everything around package transfer that takes a path: it opens sources
// and targets, judges what a target is to its source, chooses tracker and view, and refuses
// targets whose content must not be lost: one that is in use (inuse.ErrInUse), is the source
// or lies on it, or holds something else than a mirror of the source (target.ErrRefused).
// Nothing has been written to a target that is refused. It refuses to copy a part of what
// lies on several devices (parts.ErrPart).
//
// A mirror is locked while it is worked on; functions on different mirrors may run at the
// same time. The program's main must call reexec.Main first.
package pairs

import (
	"context"
	"fmt"
	"strings"
	"time"

	"tidemark/linux/blkid"
	"tidemark/track/bpf"
	"tidemark/transfer"
	"tidemark/transfer/target"
	"tidemark/view"
)

var (
	// ErrOwnSource wraps target.ErrRefused, and says that each copy would change what it
	// copies.
	ErrOwnSource = fmt.Errorf("%w: it lies on a filesystem of the source", target.ErrRefused)
	// ErrUsedSince says that somebody has used a mirror since the last run, which a run would
	// revert. It wraps target.ErrRefused; Options.Overwrite reverts it.
	ErrUsedSince = fmt.Errorf("%w: it was used since the last run", target.ErrRefused)
)

// ForcedFreeze is how long a freeze lasts at most when it is forced: even then a
// target that never answers must not hold a filesystem for ever.
const ForcedFreeze = 10 * time.Minute

// Pair names a source, a block device or image file (see names.Source), and its target, an
// image file, which is made if need be, or a block device (see names.Target).
type Pair struct{ Source, Target string }

// Options say how to mirror. The zero value works.
type Options struct {
	StateDir string      // target.DefaultStateDir when empty
	Track    bpf.Options // where and how to track
	Tracker  string      // "auto" (or ""), "bpf", "era", "thin", "cow:" with a store, or "scan"
	View     string      // "auto" (or ""), "freeze", "offline", "thin" or "dm"
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
		o.StateDir = target.DefaultStateDir
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
func Mirror(ctx context.Context, pairs []Pair, o Options) ([]transfer.Report, error) {
	return newSession(o, false).run(ctx, pairs)
}

// Plan decides as Mirror does and tells what that would read, without starting,
// making or writing anything.
func Plan(ctx context.Context, pairs []Pair, o Options) ([]transfer.Report, error) {
	return newSession(o, true).foretell(ctx, pairs)
}

// ParsePair takes SRC=DST apart, at the first "=" that does not belong to a tag: the second
// one where SRC is UUID=, LABEL=, PARTUUID= or PARTLABEL=. A label with an "=" cannot be
// written so.
func ParsePair(text string) (Pair, error) {
	rest, prefix := text, ""
	if tag, ok := blkid.ParseTag(text); ok {
		prefix, rest = string(tag.Key)+"=", tag.Value
	}
	src, dst, ok := strings.Cut(rest, "=")
	if !ok || src == "" || dst == "" {
		return Pair{}, fmt.Errorf("%q is not SRC=DST", text)
	}
	return Pair{Source: prefix + src, Target: dst}, nil
}
