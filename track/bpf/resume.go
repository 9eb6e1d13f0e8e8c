package bpf

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/linux/bpf"
	"tidemark/track"
	"tidemark/witness"
)

// Resumed tells how tracking went on after a boot.
type Resumed struct {
	Disk string `json:"disk"`
	// Lost says why the marks of before are lost; empty: they are good.
	Lost  string `json:"lost,omitempty"`
	Marks int    `json:"marks"` // that are kept
	// Silent is how many bytes count as changed because what lies there keeps no trace of who
	// mounted it meanwhile.
	Silent int64 `json:"silent"`
}

// resuming is what Resume brings to the beginning of tracking.
type resuming struct {
	sv     saved
	lost   string     // why there is nothing to take up
	places extent.Set // of the record, on the disk
	root   bool       // see Place
	done   Resumed
}

// Resume begins to track a disk before anybody uses it, and takes up what Save wrote down at the end
// of the last boot: marks of before are good if the disk is the same, nobody has used it meanwhile,
// the shutdown was clean and the record was not used before. Else they are lost, for the reason
// in Resumed. Tracking that is on, as after a reboot of user space alone, goes on.
//
// The disk of the root filesystem is in use by then; it is tracked since Early.
//
// The errors are those of Open; tracking has not begun then, and the record is used up.
func Resume(ctx context.Context, source *block.Device, opts Options, at Place) (Resumed, error) {
	r := &resuming{root: at.Root}
	id, err := identify(source)
	if err == nil {
		err = opts.paths().makeWritable(id.Disk)
	}
	if err != nil {
		return r.done, err
	}
	// From here on the record is worth nothing: it is as if the power was cut.
	if r.sv, r.lost, r.places, err = at.take(); err != nil {
		return r.done, err
	}
	opts.resuming = r
	t, err := Open(ctx, source, opts)
	if err != nil {
		return r.done, err
	}
	ls, err := t.s.history().Leases()
	r.done.Disk, r.done.Marks = t.s.rec.Disk, len(ls.Owners)
	return r.done, errors.Join(err, t.Close())
}

// beginOrTakeUp starts a generation. Why says what is wrong with the one before it in this boot.
func (s *session) beginOrTakeUp(ctx context.Context, opts Options, why string) error {
	r := opts.resuming
	if r == nil {
		return s.begin(ctx, opts, why)
	}
	if r.root && r.lost == "" {
		r.lost = notEarly
	}
	r.done.Lost = r.lost
	if r.lost == "" {
		err := s.takeUp(ctx, r)
		lost := (*track.LostError)(nil)
		if err == nil || !errors.As(err, &lost) {
			return err
		}
		r.done.Lost = lost.Reason
	}
	return s.begin(ctx, opts, r.done.Lost)
}

// takeUp starts a generation that goes on with a saved one. The error is a track.LostError when it
// must not.
//
// First the kernel begins to mark, then what was saved is compared with the disk. So whoever
// wrote before is seen: either he uses the disk now, or he has left his trace.
func (s *session) takeUp(ctx context.Context, r *resuming) error {
	sv := r.sv
	if why := sv.differs(s.source, time.Now()); why != "" {
		return track.Lost("%s", why)
	}
	if err := validBlockSize(sv.Record.Granularity, s.source.DiskSize, s.fac.MaxBlocks()); err != nil {
		return track.Lost("this kernel cannot go on with it: %v", err)
	}
	if err := s.prepare(sv.Record.Granularity, sv.Record.Before); err != nil {
		return err
	}
	s.rec.Since, s.rec.Ancestors = sv.Record.Since, sv.Record.descends(sv.Epoch, sv.History.Leases)
	if err := s.history().TakeUp(sv.History, sv.Record.Generation); err != nil {
		return err
	}
	h := bpf.Header{Epoch: sv.Epoch, Floor: sv.Floor, FloorWhy: sv.Why, FloorMisses: sv.Misses, Doubted: sv.Doubted}
	if err := s.arm(h); err != nil {
		return err
	}
	if err := unused(s.source.Disk, "it was in use before tracking began"); err != nil {
		return err
	}
	if err := WaitIdle(ctx, s.source.Disk, idleLimit); err != nil {
		return err
	}
	now, err := witnessOf(s.source.Disk)
	if err != nil {
		return err
	}
	if diff := witness.Compare(sv.Witness, now); len(diff) > 0 {
		return track.Lost("somebody used the disk after it was shut down: %s", diff[0])
	}
	cur, err := s.current()
	if err != nil {
		return err
	}
	defer cur.Close()
	silent := now.Silent()
	r.done.Silent = silent.Bytes()
	if err := cur.Mark(silent, s.rec.Granularity); err != nil {
		return err
	}
	return s.rec.save(s.pl)
}

// differs says in words why what was saved is not of this disk; empty when it is.
func (sv saved) differs(id block.Identity, now time.Time) string {
	is := identityOf(id.Disk)
	switch {
	case sv.Record.Version != recordVersion || sv.Epoch == 0:
		return "what was saved is of another version of tidemark"
	case sv.Identity != is:
		return fmt.Sprintf("it is another disk (%s, was %s)", orNone(is), orNone(sv.Identity))
	case sv.Record.Size != id.DiskSize:
		return fmt.Sprintf("the disk was resized from %d to %d bytes", sv.Record.Size, id.DiskSize)
	case now.Before(sv.Time):
		return fmt.Sprintf("the clock went back: it is %s, and the disk was shut down at %s", now.UTC().Format(time.RFC3339), sv.Time.Format(time.RFC3339))
	}
	return ""
}

func orNone(identity string) string {
	if identity == "" {
		return "one without a name"
	}
	return identity
}
