package pairs

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/linux/dmera"
	"tidemark/linux/sysfs"
	"tidemark/track"
	"tidemark/track/bpf"
	"tidemark/track/cow"
	"tidemark/track/era"
	"tidemark/view"
)

// tracker chooses the tracker of a source, by the mark that is stored with its mirror;
// "" is none. A dry session starts none.
func (s *session) tracker(ctx context.Context, src *source, stored track.Mark) (track.Tracker, error) {
	if store, ok := strings.CutPrefix(s.o.Tracker, cow.Kind+":"); ok {
		return cow.Open(src.Device, store)
	}
	if s.o.Tracker == track.KindScan || s.o.automatic() && !src.IsDevice() {
		if src.untracked = "as was asked for"; !src.IsDevice() {
			src.untracked = overFile(src.Path())
		}
		return track.NewScan(src.Size()), nil
	}
	if e, err := s.era(ctx, src, stored); e != nil || err != nil {
		return e, err
	}
	if s.dry {
		return s.attach(ctx, src)
	}
	o := s.o.Track
	o.Drain = func(ctx context.Context) error {
		frozen, err := drain(ctx, src.Device, s.o.MaxFreeze)
		s.frozen += frozen
		return err
	}
	live, err := bpf.Open(ctx, src.Device, o)
	switch {
	case err == nil:
		return live, nil
	case s.o.Tracker == bpf.Kind || !errors.Is(err, bpf.ErrNotSupported):
		return nil, err
	}
	src.untracked = err.Error()
	s.o.note("%s: changes cannot be tracked (%v): reading all of it, if it is mounted while it is frozen (see --max-freeze and --force-freeze)", src.Path(), err)
	return track.NewScan(src.Size()), nil
}

// attach returns the tracker of a source that is tracked already, or one that says that
// it is not.
func (s *session) attach(ctx context.Context, src *source) (track.Tracker, error) {
	live, err := bpf.Attach(ctx, src.Device, s.o.Track)
	switch {
	case errors.Is(err, bpf.ErrNotTracked):
		return notStarted{track.NewScan(src.Size()), src.Path() + " is not tracked"}, nil
	case errors.Is(err, track.ErrMarkLost):
		return notStarted{track.NewScan(src.Size()), err.Error()}, nil
	case err != nil:
		return nil, err
	}
	return live, nil
}

// notStarted is a tracker that a run would start.
type notStarted struct {
	*track.Scan
	why string
}

func (notStarted) Kind() string { return bpf.Kind }

func (n notStarted) Changes(_ context.Context, since, _ track.Mark) (extent.Set, error) {
	return extent.Set{}, &track.LostError{Mark: since, Reason: n.why}
}

// era returns the tracker of a dm-era device, the same for all pairs; nil where
// another one is to be used.
func (s *session) era(ctx context.Context, src *source, stored track.Mark) (track.Tracker, error) {
	if e := s.eras[src.Identity().Disk]; e != nil {
		return e, nil
	}
	e, err := s.o.era(ctx, src, stored)
	if e == nil || err != nil {
		return nil, err
	}
	if s.eras == nil {
		s.eras = map[string]*era.Tracker{}
	}
	s.eras[src.Identity().Disk] = e
	return e, nil
}

// automatic reports whether the choice of the tracker is left to us.
func (o Options) automatic() bool { return o.Tracker == "" || o.Tracker == "auto" }

// era returns the tracker of a dm-era device when it is asked for, or can be used
// and no other one has the mirror's mark; otherwise nil.
func (o Options) era(ctx context.Context, src *source, stored track.Mark) (*era.Tracker, error) {
	switch {
	case o.Tracker == era.Kind:
		return o.openEra(ctx, src)
	case !o.automatic() || !isMapped(src):
		return nil, nil
	}
	e, err := o.openEra(ctx, src)
	switch {
	case errors.Is(err, dmera.ErrNotEra):
		return nil, nil
	case errors.Is(err, era.ErrDiscards), errors.Is(err, era.ErrUnfit), errors.Is(err, dmera.ErrFailed):
		o.note("%s: not using its eras: %v", src.Path(), err)
		return nil, nil
	case err != nil:
		return nil, err
	}
	has, err := o.liveHas(ctx, src, stored)
	if has {
		o.note("%s: not using its eras: the mirror's mark is of the tracking by bpf, which goes on", src.Path())
	}
	if has || err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

// liveHas reports whether tracking by eBPF is on and can vouch for the mark.
func (o Options) liveHas(ctx context.Context, src *source, m track.Mark) (has bool, err error) {
	if m.Kind() != bpf.Kind {
		return false, nil
	}
	live, err := bpf.Attach(ctx, src.Device, o.Track)
	if err == nil {
		err = errors.Join(live.Vouch(ctx, m), live.Close())
	}
	if errors.Is(err, bpf.ErrNotTracked) || errors.Is(err, track.ErrMarkLost) {
		return false, nil
	}
	return err == nil, err
}

// isMapped reports whether a source is a device of device-mapper.
func isMapped(src *source) bool {
	return src.IsDevice() && !src.Identity().IsPartition() && sysfs.IsMapped(src.Identity().Disk)
}

// openEra opens the tracker of a dm-era device, unless freezing the device would
// stop the writes to its metadata as well.
func (o Options) openEra(ctx context.Context, src *source) (*era.Tracker, error) {
	e, err := era.Open(ctx, src.Device, era.Options{
		RunDir: o.Track.RunDir, StateDir: o.StateDir, StableName: lastingName,
	})
	if err != nil {
		return nil, err
	}
	covered, err := view.Covered([]*block.Device{src.Device}, e.MetaPath())
	if err == nil && len(covered) > 0 {
		err = fmt.Errorf("%w: its metadata %s lies on a filesystem of its own", era.ErrUnfit, e.MetaPath())
	}
	if err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

// lastingName is stableName for as long as that outlives a reboot.
func lastingName(path string) string {
	id, err := block.Identify(path)
	if err != nil {
		return ""
	}
	if name := stableName(id); !volatile(name) {
		return name
	}
	return ""
}

// Drain freezes and thaws what is mounted from a device, within limit; when it
// returns nil, no write from before is in flight. The error wraps
// view.ErrNothingToFreeze where nothing is mounted that could be frozen.
func Drain(ctx context.Context, device string, limit time.Duration) error {
	d, err := block.Open(device, block.Options{})
	if err != nil {
		return fmt.Errorf("drain: %w", err)
	}
	defer d.Close()
	_, err = drain(ctx, d, limit)
	return err
}

// drain is Drain of a device that is open; it tells for how long anything was frozen.
// Within the freeze it waits until writes that went past the filesystems have ended, as to
// another partition.
func drain(ctx context.Context, d *block.Device, limit time.Duration) (time.Duration, error) {
	v, err := view.Freeze(view.Options{Sources: []*block.Device{d}, MaxFreeze: limit}).Take(ctx, func(ctx context.Context) error {
		return bpf.WaitIdle(ctx, d.Identity().Disk, idleFrozen)
	})
	if err != nil {
		return 0, fmt.Errorf("drain: %s: %w", d.Path(), err)
	}
	report, err := v.Close()
	return report.Frozen, err
}

// idleFrozen is how long writes in flight are waited for while filesystems are
// frozen: what they may have under way then are discards.
const idleFrozen = time.Second
