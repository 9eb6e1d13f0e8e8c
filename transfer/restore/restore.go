// Package restore brings a copy to a target: a disk that is to be used again, or a new image.
//
// For most uses, call [Restore] with the path of an image and that of a target, or [RestorePoint] with
// a point of a vault. [Recover]
// brings to an end what a crash left of that; [RefuseHalf] keeps such a target from being
// taken for a source.
//
// The package judges targets as package pairs does: one that holds something, or is in use,
// is refused (target.ErrRefused, inuse.ErrInUse), and nothing has been written to it then.
// Each block of the copy is held against its checksum when it was read, before it is
// written. A block that is not what it should be is not written, and named, unless the
// options say otherwise.
//
// # Two ways
//
// Write writes in place. A target that is cut off in it is neither what it was nor the copy.
// The file RecordFile of the folder says so until the end, with the length of the part that
// a sync has made durable: the next run goes on behind it. It tells how the target looked
// when a run stopped in good order. When it looks otherwise the next run cannot tell what
// happened, and compares that part.
//
// Commit goes through package transaction, so that the target is what it was or the copy,
// whatever crashes. It is for the disk that the copy is of, where little differs.
//
// Functions on different targets may run at the same time.
package restore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tidemark/block"
	"tidemark/format/state"
	"tidemark/format/sums"
	"tidemark/linux/mounts"
	"tidemark/track/bpf"
	"tidemark/transfer"
	"tidemark/transfer/mirror"
	"tidemark/transfer/names"
	"tidemark/transfer/origin"
	"tidemark/transfer/target"
	"tidemark/transfer/transaction"
	"tidemark/words"
)

var (
	// ErrUnchecked says that nothing is known of an image, so that its content cannot be
	// held against checksums.
	ErrUnchecked = errors.New("there are no checksums to hold it against")
	// ErrHalf says that a restore onto a source was cut off.
	ErrHalf = errors.New("a restore onto it was cut off: it is neither what it was nor the copy")
	// ErrNoJournalRoom says that what differs is more than the journal of a restore has
	// room for.
	ErrNoJournalRoom = errors.New("too little room for the journal")
	// ErrNotKept says that a target, read back from its disk, does not hold what was
	// written to it.
	ErrNotKept = errors.New("its disk does not hold what was written to it")
)

// Options say how to restore. The zero value works.
type Options struct {
	StateDir    string      // target.DefaultStateDir when empty
	Track       bpf.Options // where and how the target is tracked
	Tracker     string      // track.KindScan has all of the target compared
	BytesPerSec int64       // read of the copy; 0 is no limit
	Overwrite   bool        // what the target holds, and what is known of it
	Unchecked   bool        // restore what is not what its checksums say, or has none
	InPlace     bool        // read the target, and write only what differs
	NoJournal   bool        // write in place also where only what differs is written
	Verify      bool        // read the target back from its disk and hold it against the checksums
	DryRun      bool        // judge, and write nothing
	Progress    func(transfer.Event)
}

func (o Options) note(format string, args ...any) {
	o.Progress(transfer.Event{Text: fmt.Sprintf(format, args...)})
}

// The modes of a restore.
const (
	Full    = "full"
	Resumed = "resume"
	InPlace = "in place" // only what differs is written
)

// Result says what a restore did.
type Result struct {
	Source   string        `json:"source"` // the image
	Target   string        `json:"target"`
	Point    string        `json:"point,omitempty"` // id of that of a vault
	Of       string        `json:"of"`              // what the image is a copy of, "" where that is not known
	Time     time.Time     `json:"time,omitzero"`   // of the copy
	Size     int64         `json:"bytes"`
	Mode     string        `json:"mode"`
	Tracker  string        `json:"tracker,omitempty"` // that named what may differ
	Compared int64         `json:"bytes_compared"`    // of the target
	Read     int64         `json:"bytes_read"`        // of the image
	Written  int64         `json:"bytes_written"`     // to the target
	Journal  int64         `json:"bytes_journaled"`
	Damaged  []Damage      `json:"damaged"` // of the image
	Moved    bool          `json:"partition_table_moved"`
	Took     time.Duration `json:"-"`
	TookMS   float64       `json:"duration_ms"`
	Notes    []string      `json:"notes"`   // what was told
	Outcome  string        `json:"outcome"` // "ok", "planned" or what went wrong
	Code     string        `json:"code"`    // "ok", "planned" or the class of what went wrong; whoever prints it sets it
}

// Damage is a part of an image that is not what its checksums say, in bytes.
type Damage struct {
	Off int64 `json:"offset"`
	Len int64 `json:"length"`
}

// restoration is all that is open during one restore.
type restoration struct {
	o     Options
	image *target.Target // with its folder locked; nil where a point is restored
	from  *block.Device  // the image
	point *Point         // nil where an image is restored
	copy  kept
	sums  transaction.File // nil where there are none
	to    *target.Target
	store *store
	// follows is what the target becomes a mirror of, nil where it becomes none.
	follows *follower
	rep     Result
	// origin says that the target is what the image is a copy of.
	origin bool
}

// Restore brings the content of the image (or device) at image to the device or image at
// path, which is no mirror afterwards. Nothing has been written when the error wraps
// target.ErrRefused. A mirror that waits to be finished is finished first. The error wraps
// target.ErrIncomplete, ErrUnchecked, ErrNoJournalRoom, ErrNotKept, ErrDamaged, or
// ErrPending when the next call will finish what is committed.
func Restore(ctx context.Context, image, path string, o Options) (Result, error) {
	return newRestoration(o, Result{Source: image, Target: path}).run(ctx)
}

func newRestoration(o Options, rep Result) *restoration {
	if o.Progress == nil {
		o.Progress = func(transfer.Event) {}
	}
	rep.Damaged = []Damage{}
	return &restoration{o: o, rep: rep}
}

func (r *restoration) run(ctx context.Context) (Result, error) {
	began := time.Now()
	err := r.restore(ctx)
	err = errors.Join(err, r.close())
	if err != nil {
		r.rep.Outcome = err.Error()
	}
	r.rep.Took = time.Since(began)
	r.rep.TookMS = float64(r.rep.Took.Microseconds()) / 1000
	return r.rep, err
}

func (r *restoration) restore(ctx context.Context) (err error) {
	if r.rep.Target, err = names.Noted(ctx, r.rep.Target, r.o.note); err != nil {
		return err
	}
	if r.point != nil {
		err = r.openPoint(ctx)
	} else {
		err = r.openImage(ctx)
	}
	if err != nil {
		return err
	}
	if r.to, err = target.Find(r.rep.Target, r.o.StateDir); err != nil {
		return err
	}
	if err := r.to.RefuseNoDevice(); err != nil {
		return err
	}
	var sources []*block.Device
	if r.from != nil {
		sources = append(sources, r.from)
	}
	if err := r.to.RefuseUsed(sources...); err != nil {
		return err
	}
	if err := r.to.RefuseOpeners(); err != nil {
		return err
	}
	if err := r.judge(); err != nil {
		return err
	}
	if r.rep.Outcome = "planned"; r.o.DryRun {
		return nil
	}
	if err := r.openTarget(); err != nil {
		return err
	}
	if err := r.follow(ctx); err != nil {
		return err
	}
	if err := r.bring(ctx); err != nil {
		return err
	}
	if err := r.finish(ctx); err != nil {
		return err
	}
	r.rep.Outcome = "ok"
	return nil
}

func (r *restoration) close() error {
	var errs []error
	if r.sums != nil {
		errs = append(errs, r.sums.Close())
	}
	if r.follows != nil {
		errs = append(errs, r.follows.store.Close())
	}
	if r.from != nil {
		errs = append(errs, r.from.Close())
	}
	for _, t := range []*target.Target{r.to, r.image} {
		if t != nil {
			errs = append(errs, t.Close())
		}
	}
	return errors.Join(errs...)
}

// openImage opens and locks the image, and finds out what is known of it.
func (r *restoration) openImage(ctx context.Context) (err error) {
	if r.rep.Source, err = names.Noted(ctx, r.rep.Source, r.o.note); err != nil {
		return err
	}
	_, err = target.Settle(ctx, r.rep.Source, r.o.StateDir, !r.o.DryRun, r.o.note)
	if err != nil && !(r.o.Unchecked && target.CannotBeUsed(err)) {
		return err
	}
	if err := RefuseHalf(r.rep.Source, r.o.StateDir); err != nil {
		return err
	}
	if r.image, err = target.Find(r.rep.Source, r.o.StateDir); err != nil {
		return err
	}
	if r.from, err = origin.Open(r.image.Path); err != nil {
		return err
	}
	// Nobody else changes the image from here on.
	if err := r.image.Lock(false); err != nil {
		return err
	}
	r.copy = kept{Image: r.from, Unchecked: r.o.Unchecked}
	r.copy.State, err = target.ReadState(r.image.Folder)
	waits, _ := mirror.PendingAfter(r.image.Folder, r.copy.State) // of a damaged journal settle has told
	switch {
	case err == nil && waits: // another run was cut off before this one had the lock
		return fmt.Errorf("%s: %w", r.rep.Source, target.ErrPending)
	case err == nil && !r.copy.State.Complete:
		return fmt.Errorf("%s: %w", r.rep.Source, target.ErrIncomplete)
	case err == nil:
		var all *sums.Sums
		if all, r.sums, err = mirror.OpenSums(r.image.Dir, r.copy.State); err == nil {
			r.copy.Sums = all
		}
	}
	if err != nil {
		return r.withoutSums(err)
	}
	st := r.copy.State
	r.rep.Of, r.rep.Time, r.rep.Size = st.Source.Path, st.Time, st.Size
	return nil
}

// withoutSums is about an image whose content cannot be checked, and says why.
func (r *restoration) withoutSums(why error) error {
	r.copy.State = state.State{Size: r.from.Size(), BlockSize: pieceBytes}
	r.rep.Size = r.from.Size()
	if !r.o.Unchecked {
		return fmt.Errorf("%s: %w: %w", r.rep.Source, ErrUnchecked, why)
	}
	r.o.note("%s: %v: restoring it unchecked, as it is", r.rep.Source, why)
	return nil
}

// judge refuses a target that must not be overwritten, and chooses the mode. Nothing is
// written to the target before.
func (r *restoration) judge() error {
	t := r.to
	if t.Device && t.Size < r.rep.Size {
		return t.Refused(target.ErrTooSmall, "it has %s, the copy %s", words.Exactly(t.Size), words.Exactly(r.rep.Size))
	}
	r.rep.Mode = Full
	if !t.Exists {
		return nil
	}
	if r.origin = r.isOrigin(); r.origin || r.o.InPlace && r.copy.Sums != nil && t.Size >= r.rep.Size {
		r.rep.Mode = InPlace
	}
	if goesOn, err := r.goesOn(); err != nil || goesOn {
		return err
	}
	if r.o.Overwrite {
		return nil
	}
	return r.refuseHeld()
}

// goesOn reports whether what the target holds is what a restore of this very copy has
// brought to it, as far as it can be told without reading it: what others have written to
// a part of it is found later.
func (r *restoration) goesOn() (bool, error) {
	record, is, err := Unfinished(r.to.Folder)
	if err != nil && !r.o.Overwrite {
		return false, fmt.Errorf("target: %s: %w", r.rep.Target, err)
	}
	if st := r.copy.State; !is || r.copy.Sums == nil || record.ID != st.ID || record.Update != st.Update {
		return false, nil
	}
	if record.Copied > 0 && r.rep.Mode == Full {
		r.rep.Mode = Resumed
	}
	if record.Copied > 0 || record.Complete {
		return true, nil
	}
	d, err := block.Open(r.to.Path, block.Options{})
	if err != nil {
		return false, fmt.Errorf("target: %w", err)
	}
	defer d.Close()
	now, err := transaction.Disk{Device: d}.Stamp()
	return transaction.Stamp(record.Target).Differs(now) == "", err
}

// refuseHeld refuses a target that holds something.
func (r *restoration) refuseHeld() error {
	holds, err := holds(r.to)
	if err != nil || holds == "" {
		return err
	}
	if r.origin {
		holds += fmt.Sprintf("; the copy is of this very disk, and what was written to it since %s would be lost", words.Time(r.rep.Time))
	}
	return r.to.Refused(target.ErrHoldsOther, "%s", holds)
}

// holds says in words what a target holds, "" where there is no sign of anything.
func holds(t *target.Target) (string, error) {
	st, err := target.ReadState(t.Folder)
	switch {
	case err == nil:
		return "a mirror of " + origin.Describe(st.Source), nil
	case !errors.Is(err, target.ErrNoMirror):
		return err.Error(), nil
	case !t.Device && t.Size > 0:
		return fmt.Sprintf("the image exists, and has %s", words.Size(t.Size)), nil
	case !t.Device:
		return "", nil
	}
	d, err := block.Open(t.Path, block.Options{})
	if err != nil {
		return "", fmt.Errorf("target: %w", err)
	}
	defer d.Close()
	found, err := mounts.Probe(d, d.Size())
	if err != nil {
		return "", fmt.Errorf("target: %s: %w", t.Path, err)
	}
	if len(found) == 0 {
		return "", nil
	}
	return found[0].String(), nil
}

// openTarget opens and locks the target, judges it again, and has what is known of it
// forgotten.
func (r *restoration) openTarget() error {
	t := r.to
	existed := t.Exists
	if err := t.Open(r.rep.Size); err != nil {
		return fmt.Errorf("target: %w", err)
	}
	if err := t.Lock(true); err != nil {
		return err
	}
	// Before the lock somebody may have filled it, or made it a mirror.
	if t.Size = t.Disk.Size(); existed || t.Size > 0 {
		t.Exists = true
		if err := r.judge(); err != nil {
			return err
		}
	}
	disk := transaction.Disk{Device: t.Disk}
	if _, err := target.ReadState(t.Folder); !errors.Is(err, target.ErrNoMirror) {
		if err := t.Forget(); err != nil {
			return fmt.Errorf("target: %s: %w", r.rep.Target, err)
		}
		r.o.note("%s: it was a mirror, and is none any more", r.rep.Target)
	}
	var err error
	if r.store, err = openStore(disk, t.Dir, r.copy, r.o.Overwrite); err != nil {
		return fmt.Errorf("target: %s: %w", r.rep.Target, err)
	}
	if told := r.store.Recovered(); told != "" {
		r.o.note("%s: %s", r.rep.Target, told)
	}
	r.store.Limit = transfer.NewLimiter(r.o.BytesPerSec)
	return nil
}
