package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"tidemark/linux/dm"
	"tidemark/linux/sysfs"
	"tidemark/track"
	"tidemark/track/bpf"
)

// ErrMode says that a snapshot is not one for which something can be done.
var ErrMode = errors.New("not in the mode for that")

// Incremental mode. A record says of it:
//
//	incremental, up        no device, no store; the mark of each volume is kept
//	incremental, not up    the same, and what there is of devices and stores has to go
//
// so that ToIncremental and ToSnapshot are each one step, which Repair takes back or ends.

// Next is the snapshot that follows an incremental one. MaxFreeze is required.
type Next struct {
	// Stores are where the stores are to be, and how large, one for each volume in its order; of a
	// Device Store, Ranges, Replace and Size count. The zero Device is a store as before, and nil has
	// all as before.
	Stores []Device
	// Lists are the paths of the lists of what changed, one for each volume. ToSnapshot puts that
	// of ListPath in the place of each "". nil is that of ListPath for all.
	Lists     []string
	Labels    map[string]string // in place of those that the snapshot has; nil: as they are
	Reserve   int64             // as in Request
	MaxFreeze time.Duration     // as in Request
}

// ToIncremental drops the data of a snapshot that is tracked: images, stores and their files are
// removed as by Destroy, and what changes since the instant goes on to be followed. The error wraps
// ErrMode, ErrInUse, or track.ErrMarkLost when that is lost already; then nothing has changed.
func (s *Snapshot) ToIncremental(ctx context.Context) error {
	unlock, err := s.o.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.inMode(false); err != nil {
		return err
	}
	if err := s.vouched(ctx); err != nil {
		return err
	}
	ctl, err := dm.Open()
	if err != nil {
		return err
	}
	defer ctl.Close()
	err = s.unused(ctl)
	for _, v := range s.Volumes {
		err = errors.Join(err, v.removable())
	}
	if err != nil {
		return fmt.Errorf("snapshot: %s: %w", s.Name, err)
	}
	if s.Boot, err = sysfs.BootID(); err != nil { // a persistent one may be of an earlier boot
		return err
	}
	// From here on a crash leaves an incremental one, of which Repair removes the rest.
	s.Incremental, s.Up = true, false
	if err := s.write(); err != nil {
		return err
	}
	return s.bare(context.WithoutCancel(ctx), ctl)
}

// vouched fails unless the trackers vouch for the marks of all volumes.
func (s *Snapshot) vouched(ctx context.Context) error {
	all, err := s.follow(ctx, false, 0)
	if err == nil {
		err = all.close()
	}
	if err != nil {
		return fmt.Errorf("snapshot: %s: %w", s.Name, err)
	}
	return nil
}

// bare removes all that an incremental snapshot has no use for.
func (s *Snapshot) bare(ctx context.Context, ctl *dm.Control) error {
	if err := s.takeVolumes(ctx, ctl, true); err != nil {
		return fmt.Errorf("snapshot: %s: %w", s.Name, err)
	}
	for _, v := range s.Volumes {
		v.Dropped, v.Note = "", nil // what its image was like
	}
	s.Up = true
	return s.write()
}

// inMode reads the record again, and refuses a snapshot that is not tracked, whole, and of the
// mode.
func (s *Snapshot) inMode(incremental bool) error {
	if err := s.again(); err != nil {
		return err
	}
	ended, err := s.Ended()
	if err != nil {
		return err
	}
	why := ""
	switch {
	case !s.tracked():
		why = "it is not tracked: take one with --track"
	case !s.Up:
		why = `a command was cut off: "tidemark snapshot repair" ends it`
	case incremental && !s.Incremental:
		why = "it is a snapshot already"
	case !incremental && s.Incremental:
		why = "it is incremental already"
	case !incremental && ended:
		why = "it is over, because the machine was booted"
	}
	if why != "" {
		return fmt.Errorf("snapshot: %s: %w: %s", s.Name, ErrMode, why)
	}
	return nil
}

// removable refuses a store whose file cannot be removed now.
func (v *Volume) removable() error {
	if v.Store.Kind != Inside {
		return nil
	}
	f, err := filesystem(v.Dev)
	if err == nil && !f.ReadOnly {
		_, err = top(f)
	}
	if err != nil || f.ReadOnly {
		return fmt.Errorf("%s: %w: its filesystem, on which the store is, is not mounted, or read-only: mount it", v.Name, ErrMode)
	}
	return nil
}

// ToSnapshot takes the next snapshot of the volumes of an incremental one, at a new instant, and
// writes the lists of what changed from the last one to this. The error wraps ErrMode,
// track.ErrMarkLost when what changed cannot be told, or is one of Create's; then it is incremental
// as before.
func (s *Snapshot) ToSnapshot(ctx context.Context, n Next) error {
	unlock, err := s.o.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	_, left := s.o.repair(ctx)
	if err := s.inMode(true); err != nil {
		return errors.Join(err, left)
	}
	if n.Stores == nil {
		n.Stores = make([]Device, len(s.Volumes))
	}
	if n.Lists == nil {
		n.Lists = make([]string, len(s.Volumes))
	}
	if len(n.Stores) != len(s.Volumes) || len(n.Lists) != len(s.Volumes) {
		return fmt.Errorf("snapshot: %s: %d stores and %d lists for %d volumes", s.Name, len(n.Stores), len(n.Lists), len(s.Volumes))
	}
	ctl, err := dm.Open()
	if err != nil {
		return err
	}
	defer ctl.Close()
	next, err := s.o.begin(ctx, ctl, s.request(n), s)
	if err == nil {
		err = next.unhindered(left)
	}
	if err != nil {
		return errors.Join(err, next.letGo())
	}
	if err := next.placeLists(n.Lists); err != nil {
		return fmt.Errorf("snapshot: %s: %w", s.Name, err)
	}
	for i, v := range next.Volumes {
		// The number is used up from here on: a list that an attempt leaves which fails is none of
		// any snapshot.
		s.Volumes[i].Chain.Sequence++
		v.Chain = s.Volumes[i].Chain
	}
	all, err := next.follow(ctx, false, 0)
	if err != nil {
		return fmt.Errorf("snapshot: %s: %w", s.Name, err)
	}
	err = next.follows(ctx, ctl, s, all, n)
	if err = errors.Join(err, all.close()); err != nil {
		return fmt.Errorf("snapshot: %s: %w", s.Name, err)
	}
	*s = *next
	return nil
}

// request is what to take the next snapshot of.
func (s *Snapshot) request(n Next) Request {
	req := Request{
		Name: s.Name, Chunk: s.Chunk, Persistent: s.Persistent, Reserve: n.Reserve, MaxFreeze: n.MaxFreeze,
		Link: s.Link, Labels: s.Labels,
	}
	for i, v := range s.Volumes {
		d := Device{Path: "/dev/mapper/" + v.Name, Store: n.Stores[i].Store, Ranges: n.Stores[i].Ranges, Replace: n.Stores[i].Replace, Size: n.Stores[i].Size}
		if d.Size == 0 {
			d.Size = max(v.Store.Size, v.Inside().Bytes())
		}
		if len(d.Ranges) == 0 && d.Store == "" {
			d.Ranges = v.Store.Ranges
		}
		if d.Store == "" && v.Store.Kind == Zram {
			d.Store = Zram
		}
		if d.Store == "" && len(d.Ranges) == 0 && v.Store.Below != ".tidemark-"+s.Name {
			d.Store = v.Store.Path
		}
		req.Devices = append(req.Devices, d)
	}
	return req
}

// follows takes the snapshot after before, which stays as it is after an error.
func (s *Snapshot) follows(ctx context.Context, ctl *dm.Control, before *Snapshot, all trackers, n Next) error {
	created := s.Created
	s.Incremental, s.Created = true, before.Created // until it is whole
	if err := s.write(); err != nil {
		return err
	}
	var marks []track.Mark
	req := s.request(n)
	req.Instant = func(ctx context.Context) (err error) {
		marks, err = all.cut(ctx, s.Volumes)
		return err
	}
	err := s.create(ctx, ctl, req)
	if err == nil {
		s.Created = created
		err = s.succeed(ctx, all, marks, n)
	}
	if err == nil {
		for _, v := range s.Volumes {
			_ = s.releaseBut(ctx, v, v.Chain.Mark) // what stays kept costs little, and goes with the next
		}
		return nil
	}
	undone := s.takeVolumes(context.WithoutCancel(ctx), ctl, true)
	if undone == nil {
		undone = before.write()
	}
	return errors.Join(err, undone)
}

// succeed makes a snapshot that is there the one after the last, in one step: before its record
// is written it is the last one, incremental.
func (s *Snapshot) succeed(ctx context.Context, all trackers, marks []track.Mark, n Next) error {
	chains := make([]*Chain, len(all))
	for i, v := range s.Volumes {
		set, err := all[i].Changes(ctx, v.Chain.Mark, marks[i])
		if err == nil {
			list := *v.Chain
			list.Sequence--
			err = writeList(n.Lists[i], v.Size, list, set)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", v.Name, err)
		}
		chains[i] = &Chain{UUID: v.Chain.UUID, Sequence: v.Chain.Sequence, Mark: marks[i]}
	}
	if err := s.keepMarks(ctx, all, marks); err != nil {
		return err
	}
	for i, v := range s.Volumes {
		v.Chain = chains[i]
	}
	if n.Labels != nil {
		s.Labels = n.Labels
	}
	if _, err := s.note(); err != nil {
		return err
	}
	s.Incremental, s.Up = false, true
	return s.write()
}

// Reload makes a snapshot of before a boot one of now: an incremental one, when its trackers vouch for
// all marks, or a persistent one that was brought up at the boot, whose link is made again. The error
// wraps ErrMode or track.ErrMarkLost.
func (s *Snapshot) Reload(ctx context.Context, incremental bool) error {
	unlock, err := s.o.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.inMode(incremental); err != nil {
		return err
	}
	if incremental {
		err = s.vouched(ctx)
	} else {
		err = s.shown()
	}
	if err != nil {
		return err
	}
	if s.Boot, err = sysfs.BootID(); err != nil {
		return err
	}
	return s.write()
}

// shown makes the link to the image, which /dev has lost with a boot, unless the snapshot is lost.
func (s *Snapshot) shown() error {
	st, err := s.Status()
	if err == nil && st.Lost != "" {
		err = fmt.Errorf("snapshot: %s: %w: it is lost: %s", s.Name, ErrMode, st.Lost)
	}
	if err == nil {
		err = s.unlink()
	}
	if err == nil {
		err = s.link()
	}
	return err
}

// lookIncremental fills in how a volume of an incremental snapshot is: what changes of it can be
// told, or cannot.
func (s *Snapshot) lookIncremental(v *Volume, st *VolumeStatus) error {
	ctx := context.Background() // what is waited for is held for moments
	st.Image, st.Total = "", 0
	t, err := s.o.tracker(ctx, v)
	if err == nil {
		err = errors.Join(t.Vouch(ctx, v.Chain.Mark), t.Close())
	}
	lost := (*track.LostError)(nil)
	switch {
	case errors.As(err, &lost):
		st.Lost = "what changed cannot be told: " + lost.Reason
	case errors.Is(err, bpf.ErrNotTracked):
		st.Lost = "what changed cannot be told: " + notTracked
	case errors.Is(err, fs.ErrNotExist):
		st.Lost = "the device is not there"
	default:
		return err
	}
	return nil
}
