package pairs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tidemark/block"
	"tidemark/format/state"
	"tidemark/linux/mounts"
	"tidemark/transfer/mirror"
	"tidemark/transfer/restore"
	"tidemark/transfer/transaction"
)

var (
	// ErrUnchecked says that nothing is known of an image, so that its content cannot be
	// held against checksums.
	ErrUnchecked = errors.New("there are no checksums to hold it against")
	// ErrHalfRestored says that a restore onto a source was cut off.
	ErrHalfRestored = errors.New("a restore onto it was cut off: it is neither what it was nor the copy")
	// ErrNoJournalRoom says that what differs is more than the journal of a restore has
	// room for.
	ErrNoJournalRoom = errors.New("too little room for the journal")
	// ErrNotKept says that a target, read back from its disk, does not hold what was
	// written to it.
	ErrNotKept = errors.New("its disk does not hold what was written to it")
)

// RestoreOptions say how to restore. The zero value works. Of Options those that concern
// views and hooks are of no meaning.
type RestoreOptions struct {
	Options
	Unchecked bool // restore what is not what its checksums say, or has none
	NoJournal bool // write in place also where only what differs is written
	Verify    bool // read the target back from its disk and hold it against the checksums
	DryRun    bool // judge, and write nothing
}

// The modes of a restore.
const (
	RestoreFull    = "full"
	RestoreResumed = "resume"
	RestoreInPlace = "in place" // only what differs is written
)

// Restored says what a restore did.
type Restored struct {
	Source   string         `json:"source"` // the image
	Target   string         `json:"target"`
	Of       string         `json:"of"`            // what the image is a copy of, "" where that is not known
	Time     time.Time      `json:"time,omitzero"` // of the copy
	Size     int64          `json:"bytes"`
	Mode     string         `json:"mode"`
	Tracker  string         `json:"tracker,omitempty"` // that named what may differ
	Compared int64          `json:"bytes_compared"`    // of the target
	Read     int64          `json:"bytes_read"`        // of the image
	Written  int64          `json:"bytes_written"`     // to the target
	Journal  int64          `json:"bytes_journaled"`
	Damaged  []DamagedRange `json:"damaged"` // of the image
	Moved    bool           `json:"partition_table_moved"`
	Took     time.Duration  `json:"-"`
	TookMS   float64        `json:"duration_ms"`
	Notes    []string       `json:"notes"`   // what was told
	Outcome  string         `json:"outcome"` // "ok", "planned" or what went wrong
	Code     string         `json:"code"`    // "ok", "planned" or the class of what went wrong; whoever prints it sets it
}

// DamagedRange is a part of an image that is not what its checksums say, in bytes.
type DamagedRange struct {
	Off int64 `json:"offset"`
	Len int64 `json:"length"`
}

// restoration is all that is open during one restore.
type restoration struct {
	o     RestoreOptions
	image *target // with its folder locked
	from  *source
	copy  restore.Copy
	sums  transaction.File // nil where there are none
	to    *target
	store *restore.Store
	rep   Restored
	// origin says that the target is what the image is a copy of.
	origin bool
}

// Restore brings the content of the image (or device) at image to the device or image at
// path, which is no mirror afterwards. Nothing has been written when the error wraps
// ErrRefused. A mirror that waits to be finished is finished first. The error wraps
// ErrIncomplete, ErrUnchecked, ErrNoJournalRoom, ErrNotKept, restore.ErrDamaged, or
// restore.ErrPending when the next call will finish what is committed.
func Restore(ctx context.Context, image, path string, o RestoreOptions) (rep Restored, err error) {
	o.Options = o.Options.withDefaults()
	began := time.Now()
	r := &restoration{o: o, rep: Restored{Source: image, Target: path, Damaged: []DamagedRange{}}}
	err = r.restore(ctx)
	err = errors.Join(err, r.close())
	if rep = r.rep; err != nil {
		rep.Outcome = err.Error()
	}
	rep.Took = time.Since(began)
	rep.TookMS = float64(rep.Took.Microseconds()) / 1000
	return rep, err
}

func (r *restoration) restore(ctx context.Context) (err error) {
	for _, name := range []*string{&r.rep.Source, &r.rep.Target} {
		if *name, err = r.o.target(ctx, *name); err != nil {
			return err
		}
	}
	if err := r.openImage(ctx); err != nil {
		return err
	}
	if r.to, err = findTarget(r.rep.Target, r.o.StateDir); err != nil {
		return err
	}
	if err := r.to.refuseNoDevice(); err != nil {
		return err
	}
	if err := r.to.refuseUsed([]*source{r.from}); err != nil {
		return err
	}
	if err := r.to.refuseOpeners(); err != nil {
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
	if r.from != nil {
		errs = append(errs, r.from.Close())
	}
	for _, t := range []*target{r.to, r.image} {
		if t != nil {
			errs = append(errs, t.close())
		}
	}
	return errors.Join(errs...)
}

// openImage opens and locks the image, and finds out what is known of it.
func (r *restoration) openImage(ctx context.Context) (err error) {
	_, err = settle(ctx, r.rep.Source, !r.o.DryRun, r.o.Options)
	if err != nil && !(r.o.Unchecked && cannotBeUsed(err)) {
		return err
	}
	if err := refuseHalfRestored(r.rep.Source, r.o.StateDir); err != nil {
		return err
	}
	if r.image, err = findTarget(r.rep.Source, r.o.StateDir); err != nil {
		return err
	}
	if r.from, err = openSource(r.image.path); err != nil {
		return err
	}
	// Nobody else changes the image from here on.
	if err := r.image.lock(false); err != nil {
		return err
	}
	r.copy = restore.Copy{Image: r.from, Unchecked: r.o.Unchecked}
	r.copy.State, err = readState(r.image.folder)
	waits, _ := mirror.PendingAfter(r.image.folder, r.copy.State) // of a damaged journal settle has told
	switch {
	case err == nil && waits: // another run was cut off before this one had the lock
		return fmt.Errorf("%s: %w", r.rep.Source, ErrPending)
	case err == nil && !r.copy.State.Complete:
		return fmt.Errorf("%s: %w", r.rep.Source, ErrIncomplete)
	case err == nil:
		r.copy.Sums, r.sums, err = mirror.OpenSums(r.image.dir, r.copy.State)
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
	r.copy.State = state.State{Size: r.from.Size(), BlockSize: compareChunk}
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
	if t.device && t.size < r.rep.Size {
		return t.refused(ErrTooSmall, "it has %s, the copy %s", exactly(t.size), exactly(r.rep.Size))
	}
	r.rep.Mode = RestoreFull
	if !t.exists {
		return nil
	}
	if r.origin = r.copy.Sums != nil && sameOrigin(r.copy.State.Source, t.origin()); r.origin {
		r.rep.Mode = RestoreInPlace
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
	record, is, err := restore.Unfinished(r.to.folder)
	if err != nil && !r.o.Overwrite {
		return false, fmt.Errorf("target: %s: %w", r.rep.Target, err)
	}
	if st := r.copy.State; !is || r.copy.Sums == nil || record.ID != st.ID || record.Update != st.Update {
		return false, nil
	}
	if record.Copied > 0 && r.rep.Mode == RestoreFull {
		r.rep.Mode = RestoreResumed
	}
	if record.Copied > 0 || record.Complete {
		return true, nil
	}
	d, err := block.Open(r.to.path, block.Options{})
	if err != nil {
		return false, fmt.Errorf("target: %w", err)
	}
	defer d.Close()
	now, err := transaction.Disk{Device: d}.Stamp()
	return transaction.Stamp(record.Target).Differs(now) == "", err
}

// refuseHeld refuses a target that holds something.
func (r *restoration) refuseHeld() error {
	holds, err := r.to.holds()
	if err != nil || holds == "" {
		return err
	}
	if r.origin {
		holds += fmt.Sprintf("; the copy is of this very disk, and what was written to it since %s would be lost", r.rep.Time.Local().Format(timeFormat))
	}
	return r.to.refused(ErrHoldsOther, "%s", holds)
}

// origin is what a mirror of the target would remember of it.
func (t *target) origin() state.Source {
	if !t.device {
		return state.Source{Path: t.path}
	}
	return state.Source{Path: t.path, Stable: stableName(t.id), Start: t.id.Start}
}

// holds says in words what a target holds, "" where there is no sign of anything.
func (t *target) holds() (string, error) {
	st, err := readState(t.folder)
	switch {
	case err == nil:
		return "a mirror of " + describe(st.Source), nil
	case !errors.Is(err, ErrNoMirror):
		return err.Error(), nil
	case !t.device && t.size > 0:
		return fmt.Sprintf("the image exists, and has %s", sized(t.size)), nil
	case !t.device:
		return "", nil
	}
	d, err := block.Open(t.path, block.Options{})
	if err != nil {
		return "", fmt.Errorf("target: %w", err)
	}
	defer d.Close()
	found, err := mounts.Probe(d, d.Size())
	if err != nil {
		return "", fmt.Errorf("target: %s: %w", t.path, err)
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
	existed := t.exists
	if err := t.openDisk(r.rep.Size); err != nil {
		return fmt.Errorf("target: %w", err)
	}
	if err := t.lock(true); err != nil {
		return err
	}
	// Before the lock somebody may have filled it, or made it a mirror.
	if t.size = t.disk.Size(); existed || t.size > 0 {
		t.exists = true
		if err := r.judge(); err != nil {
			return err
		}
	}
	disk := transaction.Disk{Device: t.disk}
	if _, err := readState(t.folder); !errors.Is(err, ErrNoMirror) {
		if err := t.forget(r.o.StateDir); err != nil {
			return fmt.Errorf("target: %s: %w", r.rep.Target, err)
		}
		r.o.note("%s: it was a mirror, and is none any more", r.rep.Target)
	}
	var err error
	if r.store, err = restore.Open(disk, t.dir, r.copy, r.o.Overwrite); err != nil {
		return fmt.Errorf("target: %s: %w", r.rep.Target, err)
	}
	if told := r.store.Recovered(); told != "" {
		r.o.note("%s: %s", r.rep.Target, told)
	}
	r.store.Limit = limiter(r.o.BytesPerSec)
	return nil
}
