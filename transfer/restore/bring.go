package restore

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"tidemark/extent"
	"tidemark/track"
	"tidemark/track/bpf"
	"tidemark/transfer"
	"tidemark/transfer/transaction"
	"tidemark/words"
)

// bring makes the target hold what the copy says, and looks at it once more if that is
// asked for.
func (r *restoration) bring(ctx context.Context) (err error) {
	if r.rep.Mode == InPlace {
		err = r.bringInPlace(ctx)
	} else {
		err = r.bringAll(ctx)
	}
	r.rep.Read, r.rep.Written, r.rep.Journal = r.store.Read(), r.store.Written(), r.store.Journaled()
	for _, e := range r.store.Bad().Extents() {
		r.rep.Damaged = append(r.rep.Damaged, Damage{e.Off, e.Len})
	}
	if err != nil {
		return fmt.Errorf("%s: %w", r.rep.Target, err)
	}
	if bad := r.store.Bad(); !bad.Empty() {
		r.o.note("%s: %s of it are not what they should be, and were restored as they are: %s",
			r.rep.Source, words.Size(bad.Bytes()), ranges(bad))
	}
	if !r.o.Verify || r.copy.Sums == nil {
		return nil
	}
	bad, err := r.compare(ctx, "verify", extent.NewSet(extent.Extent{Len: r.rep.Size}))
	if bad = bad.Subtract(r.store.Bad()); err == nil && !bad.Empty() {
		err = fmt.Errorf("%s: %w: %s differ: %s", r.rep.Target, ErrNotKept, words.Size(bad.Bytes()), ranges(bad))
	}
	return err
}

// compare holds set of the target against the checksums of the copy.
func (r *restoration) compare(ctx context.Context, phase string, set extent.Set) (extent.Set, error) {
	r.rep.Compared += set.Bytes()
	r.store.Progress = transfer.Count(phase, set.Bytes(), r.o.Progress)
	return r.store.Compare(ctx, set)
}

// bringAll writes all of the copy, or goes on where a restore was cut off.
func (r *restoration) bringAll(ctx context.Context) error {
	whole := extent.Extent{Len: r.rep.Size}
	copied, why, ok := r.store.Resumes()
	if !ok || copied == 0 {
		r.rep.Mode = Full
		if !r.to.Device {
			r.store.Empty()
		}
		return r.write(ctx, extent.NewSet(whole), 0)
	}
	done := extent.NewSet(extent.Extent{Len: copied})
	left := extent.NewSet(whole).Subtract(done)
	amount := fmt.Sprintf("%s of %s", words.Size(copied), words.Size(whole.Len))
	if why == "" {
		if r.follows != nil {
			r.unfollow(errors.New("checksums of what was restored before it was cut off are not kept"))
		}
		r.o.note("%s: going on after %s, where a restore was cut off", r.rep.Target, amount)
		return r.write(ctx, left, copied)
	}
	r.o.note("%s: a restore was cut off after %s; %s: holding that against the checksums", r.rep.Target, amount, why)
	bad, err := r.compare(ctx, "compare", done)
	if err != nil {
		return err
	}
	if !bad.Empty() && !r.o.Overwrite {
		if err := r.refuseHeld(); err != nil {
			return fmt.Errorf("%s of what was restored are something else by now: %w", words.Size(bad.Bytes()), err)
		}
	}
	return r.write(ctx, left.Union(bad), copied)
}

// write brings set to the target in place; the bytes before copied are there but for it.
func (r *restoration) write(ctx context.Context, set extent.Set, copied int64) error {
	r.store.Progress = transfer.Count("restore", set.Bytes(), r.o.Progress)
	return r.store.Write(ctx, set, copied)
}

// bringInPlace writes what differs.
func (r *restoration) bringInPlace(ctx context.Context) error {
	transaction.Reread(transaction.Disk{Device: r.to.Disk}) // what memory holds of it is written before the tracker is asked
	set, err := r.mayDiffer(ctx)
	if err != nil {
		return err
	}
	differs, how := set, "may differ"
	if !r.named(set) {
		how = "differ"
		if differs, err = r.compare(ctx, "compare", set); err != nil {
			return err
		}
	}
	what := ""
	if r.origin {
		what = "it is what the copy is of: "
	}
	r.o.note("%s: %s%s of %s %s", r.rep.Target, what, words.Size(differs.Bytes()), words.Size(r.rep.Size), how)
	if r.o.NoJournal {
		return r.write(ctx, differs, r.rep.Size)
	}
	if err := r.roomFor(differs); err != nil {
		return err
	}
	r.store.Progress = transfer.Count("restore", differs.Bytes(), r.o.Progress)
	return r.store.Commit(ctx, differs)
}

// named reports whether set is brought to the target as it is: it was named by the tracking, so that
// most of it does differ, and to hold it against a point takes as long as to write it. A journal must
// have room for all of it.
func (r *restoration) named(set extent.Set) bool {
	return r.rep.Tracker != track.KindScan && r.copy.Sealed && (r.o.NoJournal || r.roomFor(set) == nil)
}

// roomFor refuses a journal that would not fit.
func (r *restoration) roomFor(set extent.Set) error {
	var st unix.Statfs_t
	if err := unix.Statfs(r.to.Folder, &st); err != nil {
		return fmt.Errorf("statfs %s: %w", r.to.Folder, err)
	}
	free, need := int64(st.Bavail)*st.Bsize, set.Bytes()+set.Bytes()/64+pieceBytes
	if need > free {
		return fmt.Errorf("%w: it needs %s in %s, where %s are free", ErrNoJournalRoom,
			words.Size(need), r.to.Folder, words.Size(free))
	}
	return nil
}

// mayDiffer returns what can differ between the copy and the disk that it is of: what its
// tracker says was written since, where it vouches for the mark of the copy.
func (r *restoration) mayDiffer(ctx context.Context) (set extent.Set, err error) {
	whole := extent.NewSet(extent.Extent{Len: r.rep.Size})
	r.rep.Tracker = track.KindScan
	if !r.origin || !r.to.Device || r.o.Tracker == track.KindScan {
		return whole, nil
	}
	mark, before, err := r.since(ctx)
	if err != nil || mark.Kind() != bpf.Kind {
		return whole, err
	}
	live, err := bpf.Attach(ctx, r.to.Disk, r.o.Track)
	if err == nil {
		defer func() { err = errors.Join(err, live.Close()) }()
		set, err = live.Changes(ctx, mark, "")
	}
	switch {
	case err == nil:
		r.rep.Tracker = bpf.Kind
		return set.Union(before).Clip(extent.Extent{Len: r.rep.Size}), nil
	case errors.Is(err, track.ErrMarkLost), errors.Is(err, bpf.ErrNotTracked), errors.Is(err, bpf.ErrNotSupported):
		r.o.note("%s: comparing all of it: %v", r.rep.Target, err)
		return whole, nil
	}
	return set, err
}
