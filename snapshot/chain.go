package snapshot

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"tidemark/extent"
	"tidemark/format/datto"
	"tidemark/linux/dm"
	"tidemark/track"
	"tidemark/track/bpf"
)

// Chain is the place of a volume in a row of snapshots, each with a list of what changed since
// the one before.
type Chain struct {
	UUID datto.UUID `json:"uuid"` // of the row
	// Sequence is the number of the snapshot: 1, and one or more further for each that follows. The
	// list of what changed since has it too, and no list has a number that another one had.
	Sequence uint64     `json:"sequence"`
	Mark     track.Mark `json:"mark"` // of the tracker by eBPF, at the instant
}

// owner names who keeps a mark of the chain. Each mark has its own, so that a new one can be kept
// before the one before is let go of.
func (s *Snapshot) owner(m track.Mark) string { return "snapshot " + s.Name + " " + m.Body() }

// tracked reports whether the changes since the instant can be asked for.
func (s *Snapshot) tracked() bool { return len(s.Volumes) > 0 && s.Volumes[0].Chain != nil }

// notTracked is why the mark of a chain is lost where there is no tracking.
const notTracked = "the device is not tracked any more"

// trackers follow the volumes of a snapshot, in their order.
type trackers []*bpf.Tracker

func (all trackers) close() error {
	var errs []error
	for _, t := range all {
		errs = append(errs, t.Close())
	}
	return errors.Join(errs...)
}

// follow opens the trackers of all volumes. With begin it starts tracking where that is not on;
// without, those are returned alone that can vouch for the marks of the chains. The error wraps
// track.ErrMarkLost when one cannot.
func (s *Snapshot) follow(ctx context.Context, begin bool, limit time.Duration) (all trackers, err error) {
	for _, v := range s.Volumes {
		var t *bpf.Tracker
		var err error
		if begin {
			t, err = s.track(ctx, v, limit)
		} else {
			t, err = s.o.tracker(ctx, v)
		}
		if err == nil {
			all = append(all, t)
			if !begin {
				err = t.Vouch(ctx, v.Chain.Mark)
			}
		}
		if errors.Is(err, bpf.ErrNotTracked) {
			err = &track.LostError{Mark: v.Chain.Mark, Reason: notTracked}
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", v.Name, errors.Join(err, all.close()))
		}
	}
	return all, nil
}

// tracker opens the tracker of a volume that is tracked.
func (o Options) tracker(ctx context.Context, v *Volume) (*bpf.Tracker, error) {
	source, err := v.open()
	if err != nil {
		return nil, err
	}
	defer source.Close()
	return bpf.Attach(ctx, source, o.Track)
}

// track opens the tracker of a volume, and starts tracking where that is not on.
func (s *Snapshot) track(ctx context.Context, v *Volume, limit time.Duration) (*bpf.Tracker, error) {
	source, err := v.open()
	if err != nil {
		return nil, err
	}
	defer source.Close()
	opts := s.o.Track
	opts.Drain = func(ctx context.Context) error {
		frozen, err := bpf.Drain(ctx, source, limit)
		s.Frozen += frozen
		return err
	}
	return bpf.Open(ctx, source, opts)
}

// cut cuts the trackers at the instant. The blocks of a store's own file count as changed before
// it: they were allocated since the snapshot before, and read as zeros in the image.
func (all trackers) cut(ctx context.Context, volumes []*Volume) (marks []track.Mark, err error) {
	for i, t := range all {
		if inside := volumes[i].Inside(); !inside.Empty() {
			if err := t.MarkDirty(ctx, inside); err != nil {
				return nil, err
			}
		}
		c, err := t.Cut(ctx)
		if err != nil {
			return nil, err
		}
		marks = append(marks, c.Mark)
	}
	return marks, nil
}

// keepMarks keeps marks of this snapshot's instant, at which nothing was in flight.
func (s *Snapshot) keepMarks(ctx context.Context, all trackers, marks []track.Mark) error {
	for i, t := range all {
		err := t.Keep(ctx, s.owner(marks[i]), marks[i], true)
		if err == nil {
			err = t.Persist(ctx)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", s.Volumes[i].Name, err)
		}
	}
	return nil
}

// newChain is a chain that begins with the snapshot that is made; its mark comes with the instant.
func newChain() *Chain {
	c := &Chain{Sequence: 1}
	rand.Read(c.UUID[:])
	return c
}

// release lets go of the marks of the snapshot, and ends the tracking of a volume of which
// nobody keeps a mark then. Where it is not tracked any more there is nothing to let go of.
func (s *Snapshot) release(ctx context.Context) error {
	var errs []error
	for _, v := range s.Volumes {
		if v.Chain == nil {
			continue
		}
		err := s.releaseBut(ctx, v, "")
		if err == nil {
			err = s.o.stopUnused(ctx, v)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// releaseBut lets go of all marks of the snapshot on a volume but one, also of those that a run
// which was cut off has kept.
func (s *Snapshot) releaseBut(ctx context.Context, v *Volume, m track.Mark) error {
	t, owners, err := s.o.kept(ctx, v)
	if t == nil {
		return err
	}
	for _, one := range owners {
		if strings.HasPrefix(one, s.owner("")) && one != s.owner(m) {
			err = errors.Join(err, t.Keep(ctx, one, "", true))
		}
	}
	return errors.Join(err, t.Close())
}

// kept returns the tracker of a volume, and who keeps marks of it; no tracker where it is not tracked
// any more.
func (o Options) kept(ctx context.Context, v *Volume) (*bpf.Tracker, []string, error) {
	t, err := o.tracker(ctx, v)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, bpf.ErrNotTracked) || errors.Is(err, track.ErrMarkLost) || errors.Is(err, bpf.ErrNotSupported) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	owners, err := t.Owners(ctx)
	return t, owners, err
}

// stopUnused ends the tracking of a volume of which nobody keeps a mark.
func (o Options) stopUnused(ctx context.Context, v *Volume) error {
	t, owners, err := o.kept(ctx, v)
	if t == nil {
		return err
	}
	if err = errors.Join(err, t.Close()); err != nil || len(owners) > 0 {
		return err
	}
	if err := bpf.Stop(ctx, "/dev/mapper/"+v.Name, o.Track); !errors.Is(err, bpf.ErrNotTracked) {
		return err
	}
	return nil
}

// Changes returns the bytes of a volume that changed since the instant of the snapshot, which has
// to be tracked. The error wraps ErrMode, or track.ErrMarkLost when that cannot be told.
func (s *Snapshot) Changes(ctx context.Context, v *Volume) (set extent.Set, err error) {
	if v.Chain == nil {
		return set, fmt.Errorf("snapshot: %s: %w: it is not tracked", s.Name, ErrMode)
	}
	t, err := s.o.tracker(ctx, v)
	if errors.Is(err, bpf.ErrNotTracked) {
		return set, &track.LostError{Mark: v.Chain.Mark, Reason: notTracked}
	}
	if err != nil {
		return set, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	return t.Changes(ctx, v.Chain.Mark, "")
}

// createTracked is create with the trackers of the volumes cut at the instant.
func (s *Snapshot) createTracked(ctx context.Context, ctl *dm.Control, req Request) error {
	all, err := s.follow(ctx, true, req.MaxFreeze)
	if err == nil {
		err = s.createFollowed(ctx, ctl, req, all)
		err = errors.Join(err, all.close())
	}
	if err != nil {
		// What began it ends it, unless somebody else has a mark meanwhile.
		for _, v := range s.Volumes {
			err = errors.Join(err, s.o.stopUnused(ctx, v))
		}
	}
	return err
}

func (s *Snapshot) createFollowed(ctx context.Context, ctl *dm.Control, req Request, all trackers) error {
	var marks []track.Mark
	inner := req.Instant
	req.Instant = func(ctx context.Context) (err error) {
		if marks, err = all.cut(ctx, s.Volumes); err == nil && inner != nil {
			err = inner(ctx)
		}
		return err
	}
	if err := s.create(ctx, ctl, req); err != nil {
		return err
	}
	for i, v := range s.Volumes {
		v.Chain.Mark = marks[i]
	}
	return s.keepMarks(ctx, all, marks)
}

// link makes the link to the image of the first volume.
func (s *Snapshot) link() error {
	if s.Link == "" {
		return nil
	}
	return os.Symlink(s.Image(s.Volumes[0]), s.Link)
}

// unlink removes the link, where it is ours.
func (s *Snapshot) unlink() error {
	if to, err := os.Readlink(s.Link); s.Link == "" || err != nil || to != s.Image(s.Volumes[0]) {
		return nil //nolint:nilerr // what is there is none of ours
	}
	return os.Remove(s.Link)
}
