package bpf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/linux/atomicfile"
	"tidemark/linux/bpf"
	"tidemark/linux/mounts"
	"tidemark/linux/rawfile"
	"tidemark/linux/sysfs"
	"tidemark/track"
	"tidemark/track/history"
	"tidemark/witness"
)

// early is what Early leaves to Resume, in RunDir: what the disk was before it was mounted.
type early struct {
	Generation string          `json:"generation"`
	Witness    witness.Witness `json:"witness"`
}

func (p paths) early(disk string) string { return filepath.Join(p.disk(disk), "early.json") }

// Early begins to track the disk of the root filesystem before that is mounted, when what was saved
// cannot be read yet: Resume goes on with it when root is mounted. Once it has begun, it does
// nothing. The errors are those of Open; it also refuses disks of device-mapper and the like, whose
// writes in flight nobody would wait for.
func Early(ctx context.Context, source *block.Device, opts Options) (err error) {
	id, err := identify(source)
	if err != nil {
		return err
	}
	if id.BioBased {
		return fmt.Errorf("track: %s: it is made of other devices: %w", id.Disk, ErrNotSupported)
	}
	t, err := Open(ctx, source, opts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	pl := opts.paths()
	if e, err := pl.readEarly(id.Disk); err == nil && e.Generation == t.s.rec.Generation {
		return nil
	}
	// The kernel marks by now: whoever wrote before has left his trace in the witness.
	if err := unused(id.Disk, "it was in use before tracking began"); err != nil {
		return err
	}
	if err := WaitIdle(ctx, id.Disk, idleLimit); err != nil {
		return err
	}
	w, err := witnessOf(id.Disk)
	if err != nil {
		return err
	}
	return history.Unwritable(atomicfile.WriteJSON(pl.early(id.Disk), atomicfile.Options{Mode: 0o600}, early{t.s.rec.Generation, w}))
}

// readEarly returns what Early left; the error wraps fs.ErrNotExist where it did not come to that.
func (p paths) readEarly(disk string) (e early, err error) {
	err = atomicfile.ReadJSON(p.early(disk), &e)
	return e, err
}

// notEarly is why marks are lost when Early did not run.
const notEarly = "the initramfs did not begin to track it before it was mounted; make it anew (\"tidemark boot install --update\")"

// takeUpRoot is beginOrTakeUp for a disk that is tracked since Early. It reports whether it
// began a new generation.
//
// The generation that Early began goes on: only its epoch, of which nobody has a mark yet, gets the
// number of the one that was open when the disk was saved. So nothing that was marked since is lost
// on the way. The record is away meanwhile: when this is cut short, the next one starts anew.
func (s *session) takeUpRoot(ctx context.Context, opts Options) (began bool, err error) {
	r := opts.resuming
	e, err := s.pl.readEarly(s.source.Disk)
	if errors.Is(err, fs.ErrNotExist) || err == nil && e.Generation != s.rec.Generation {
		return false, nil // it was taken up before, or tracking began by hand: it goes on
	}
	if err == nil {
		err = remove(s.pl.early(s.source.Disk))
	}
	if err != nil {
		return false, err
	}
	if r.done.Lost = r.lost; r.lost == "" {
		err := s.merge(r, e)
		lost := (*track.LostError)(nil)
		if err == nil || !errors.As(err, &lost) {
			return true, err
		}
		r.done.Lost = lost.Reason
	}
	return true, s.begin(ctx, opts, r.done.Lost)
}

// merge takes up what was saved. The error is a track.LostError when it must not.
func (s *session) merge(r *resuming, e early) error {
	sv := r.sv
	if why := sv.differs(s.source, time.Now()); why != "" {
		return track.Lost("%s", why)
	}
	if sv.Record.Granularity != s.rec.Granularity {
		return track.Lost("it was tracked in blocks of %d bytes, and is in blocks of %d bytes from the initramfs on", sv.Record.Granularity, s.rec.Granularity)
	}
	if diff := witness.Compare(sv.Witness, e.Witness); len(diff) > 0 {
		return track.Lost("somebody used the disk after it was shut down: %s", diff[0])
	}
	cur, err := s.current()
	if err != nil {
		return err
	}
	defer cur.Close()
	was := cur.Header()
	if was.Epoch != 1 {
		return track.Lost("somebody asked for its changes before what was saved was taken up")
	}
	if err := remove(s.pl.record(s.source.Disk)); err != nil {
		return err
	}
	s.rec.Since, s.rec.Ancestors = sv.Record.Since, sv.Record.descends(sv.Epoch, sv.History.Leases)
	s.rec.Before = sv.Record.Before
	if err := s.history().TakeUp(sv.History, sv.Record.Generation); err != nil {
		return err
	}
	if err := s.renumber(cur, sv); err != nil {
		return err
	}
	silent := e.Witness.Silent().Union(r.places)
	r.done.Silent = silent.Bytes()
	if err := cur.Mark(silent.Align(s.rec.Granularity, s.rec.Size), s.rec.Granularity); err != nil {
		return err
	}
	return s.rec.save(s.pl)
}

// renumber makes the first epoch of this generation the one that was open when the disk was saved.
func (s *session) renumber(cur *bpf.Bitmap, sv saved) error {
	h := cur.Header()
	from, to := s.pl.pin(s.rec.Generation, h.Epoch), s.pl.pin(s.rec.Generation, sv.Epoch)
	if from != to {
		if err := unix.Rename(from, to); err != nil {
			return fmt.Errorf("track: rename bitmap %s: %w", from, err)
		}
	}
	h.Epoch, h.Floor, h.FloorWhy, h.FloorMisses, h.Doubted = sv.Epoch, sv.Floor, sv.Why, sv.Misses, sv.Doubted
	cur.SetHeader(h)
	return nil
}

// saveRoot is saveTo of a disk with filesystems that are never unmounted, only made read-only.
//
// What is saved goes to the disk itself, past its filesystem, and so does not tell of its own
// blocks: they count as changed. Then the disk is made read-only, and only when nothing else was
// written by then does the record stay.
func (t *Tracker) saveRoot(ctx context.Context, at Place) (err error) {
	disk := t.s.rec.Disk
	if err := still(disk); err != nil {
		return err
	}
	file, err := rawfile.Open(at.raw())
	if err != nil {
		return track.Lost("what is known of its changes cannot be written: %v", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if file.Disk() != disk {
		return track.Lost("%s is on disk %s", at.raw(), file.Disk())
	}
	sv, err := t.settle(ctx)
	if err != nil {
		return err
	}
	raw, err := sv.encode()
	if err != nil {
		return err
	}
	if err := file.Write(raw); err != nil {
		return lostIf(err, rawfile.ErrNoRoom)
	}
	if err := t.sealed(ctx, file.Places()); err != nil {
		// Nobody must take up a record that lacks a write.
		return errors.Join(err, t.s.pl.makeWritable(disk), file.Clear())
	}
	return nil
}

// sealed makes the disk read-only and fails when anything but the places was written until then.
func (t *Tracker) sealed(ctx context.Context, places extent.Set) error {
	if err := t.s.pl.makeReadOnly(t.s.rec.Disk); err != nil {
		return err
	}
	if err := still(t.s.rec.Disk); err != nil {
		return err
	}
	return t.unchanged(ctx, places.Align(t.s.rec.Granularity, t.s.rec.Size))
}

// still fails when anybody may write to the disk through a filesystem, or uses it otherwise than by one
// that is read-only. The kernel itself tells: a mount of a writable filesystem that is read-only does not count.
func still(disk string) error {
	table, err := mounts.Read()
	if err != nil {
		return err
	}
	use, err := table.UseOf(sysfs.DevPath(disk))
	if err != nil {
		return err
	}
	for _, fs := range use.Filesystems {
		if !fs.ReadOnly {
			return track.Lost("it was still in use when the machine was shut down: %s is writable", fs)
		}
	}
	if len(use.Swaps)+len(use.Holders) > 0 {
		return track.Lost("it was still in use when the machine was shut down: %s", use)
	}
	return nil
}

// lostIf makes an error that wraps a certain one a track.LostError.
func lostIf(err, is error) error {
	if errors.Is(err, is) {
		return track.Lost("%v", err)
	}
	return err
}

// Check fails when a disk with the root filesystem could not be saved to this place. The error is that
// of rawfile.Open.
func (p Place) Check() error {
	f, err := rawfile.Open(p.raw())
	if err != nil {
		return err
	}
	return f.Close()
}

// Prepare makes the file that a disk with the root filesystem is saved to where there is none that
// can be written past its filesystem, which must be writable now. The error is that of package
// rawfile.
func (p Place) Prepare() error {
	err := p.Check()
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, rawfile.ErrUnfit) {
		return err
	}
	if err := rawfile.Create(p.raw()); err != nil {
		return err
	}
	return p.Check()
}

// Remove removes the file that Prepare made.
func (p Place) Remove() error {
	err := rawfile.Remove(p.raw())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// takeRaw is take of a record that is past the filesystem.
func (p Place) takeRaw() (sv saved, lost string, places extent.Set, err error) {
	f, err := rawfile.Open(p.raw())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return sv, notSaved, places, nil
	case errors.Is(err, rawfile.ErrUnfit):
		return sv, err.Error(), places, nil
	case err != nil:
		return sv, "", places, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	places = f.Places()
	all, err := f.Read()
	switch {
	case errors.Is(err, rawfile.ErrDamaged):
		lost = "what was saved is damaged"
	case err != nil:
		return sv, "", places, err
	case all == nil:
		return sv, unclean, places, nil
	default:
		sv, lost = decode(all)
	}
	return sv, lost, places, f.Clear()
}
