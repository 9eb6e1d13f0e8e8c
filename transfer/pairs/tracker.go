package pairs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/linux/bpf"
	"tidemark/linux/dmera"
	"tidemark/track"
	"tidemark/view"
)

// tracker chooses the tracker of a source, by the mark that is stored with its mirror;
// "" is none. A dry session starts none.
func (s *session) tracker(ctx context.Context, src *source, stored track.Mark) (track.Tracker, error) {
	if s.o.Tracker == track.KindScan || s.o.automatic() && !src.IsDevice() {
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
		frozen, err := drain(ctx, src.Path(), s.o.MaxFreeze)
		s.frozen += frozen
		return err
	}
	live, err := track.OpenLive(ctx, src.Path(), o)
	switch {
	case err == nil:
		return live, nil
	case s.o.Tracker == track.KindLive || !errors.Is(err, bpf.ErrNotSupported):
		return nil, err
	}
	s.o.note("%s: changes cannot be tracked (%v): reading all of it, if it is mounted while it is frozen (see --max-freeze and --force-freeze)", src.Path(), err)
	return track.NewScan(src.Size()), nil
}

// attach returns the tracker of a source that is tracked already, or one that says that
// it is not.
func (s *session) attach(ctx context.Context, src *source) (track.Tracker, error) {
	on, err := s.o.tracked(ctx, src)
	if err != nil {
		return nil, err
	}
	if !on {
		return notStarted{track.NewScan(src.Size()), src.Path()}, nil
	}
	return track.OpenLive(ctx, src.Path(), s.o.Track)
}

// notStarted is a tracker that a run would start.
type notStarted struct {
	*track.Scan
	source string
}

func (notStarted) Kind() string { return track.KindLive }

func (n notStarted) Changes(_ context.Context, since, _ track.Mark) (extent.Set, error) {
	return extent.Set{}, &track.LostError{Mark: since, Reason: n.source + " is not tracked"}
}

// era returns the tracker of a dm-era device, the same for all pairs; nil where
// another one is to be used.
func (s *session) era(ctx context.Context, src *source, stored track.Mark) (track.Tracker, error) {
	if e := s.eras[src.id.Disk]; e != nil {
		return e, nil
	}
	e, err := s.o.era(ctx, src, stored)
	if e == nil || err != nil {
		return nil, err
	}
	if s.eras == nil {
		s.eras = map[string]*track.Era{}
	}
	s.eras[src.id.Disk] = e
	return e, nil
}

// automatic reports whether the choice of the tracker is left to us.
func (o Options) automatic() bool { return o.Tracker == "" || o.Tracker == "auto" }

// era returns the tracker of a dm-era device when it is asked for, or can be used
// and no other one has the mirror's mark; otherwise nil.
func (o Options) era(ctx context.Context, src *source, stored track.Mark) (*track.Era, error) {
	switch {
	case o.Tracker == track.KindEra:
		return o.openEra(ctx, src)
	case !o.automatic() || !isMapped(src):
		return nil, nil
	}
	e, err := o.openEra(ctx, src)
	switch {
	case errors.Is(err, dmera.ErrNotEra):
		return nil, nil
	case errors.Is(err, track.ErrDiscards), errors.Is(err, track.ErrEraUnfit), errors.Is(err, dmera.ErrFailed):
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
	if m.Kind() != track.KindLive {
		return false, nil
	}
	if on, err := o.tracked(ctx, src); !on || err != nil {
		return false, err
	}
	live, err := track.OpenLive(ctx, src.Path(), o.Track)
	if err != nil {
		return false, err
	}
	_, err = live.Changes(ctx, m, "")
	has = err == nil
	if errors.Is(err, track.ErrMarkLost) {
		err = nil
	}
	return has, errors.Join(err, live.Close())
}

// isMapped reports whether a source is a device of device-mapper.
func isMapped(src *source) bool {
	if !src.IsDevice() || src.id.IsPartition() {
		return false
	}
	_, err := os.Stat(filepath.Join("/sys/block", src.id.Disk, "dm"))
	return err == nil
}

// openEra opens the tracker of a dm-era device, unless freezing the device would
// stop the writes to its metadata as well.
func (o Options) openEra(ctx context.Context, src *source) (*track.Era, error) {
	e, err := track.OpenEra(ctx, src.Path(), track.EraOptions{
		RunDir: o.Track.RunDir, StateDir: o.StateDir, StableName: lastingName,
	})
	if err != nil {
		return nil, err
	}
	covered, err := view.Covered([]*block.Device{src.Device}, e.MetaPath())
	if err == nil && len(covered) > 0 {
		err = fmt.Errorf("%w: its metadata %s lies on a filesystem of its own", track.ErrEraUnfit, e.MetaPath())
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

// tracked reports whether the source's disk is tracked by eBPF now.
func (o Options) tracked(ctx context.Context, src *source) (bool, error) {
	if !src.IsDevice() || o.Tracker == track.KindScan {
		return false, nil
	}
	all, err := track.List(ctx, o.Track)
	return slices.ContainsFunc(all, func(s track.Status) bool { return s.Disk == src.id.Disk && s.Lost == "" }), err
}

// Drain freezes and thaws what is mounted from a device, within limit; when it
// returns nil, no write from before is in flight. The error wraps
// view.ErrNothingToFreeze where nothing is mounted that could be frozen.
func Drain(ctx context.Context, device string, limit time.Duration) error {
	_, err := drain(ctx, device, limit)
	return err
}

// drain is Drain; it tells for how long anything was frozen.
func drain(ctx context.Context, device string, limit time.Duration) (time.Duration, error) {
	d, err := block.Open(device, block.Options{})
	if err != nil {
		return 0, fmt.Errorf("drain: %w", err)
	}
	defer d.Close()
	v, err := view.Freeze(view.Options{Sources: []*block.Device{d}, MaxFreeze: limit}).Take(ctx, func(ctx context.Context) error {
		return idle(ctx, device)
	})
	if err != nil {
		return 0, fmt.Errorf("drain: %s: %w", device, err)
	}
	report, err := v.Close()
	return report.Frozen, err
}

// idleFrozen is how long writes in flight are waited for while filesystems are
// frozen: what they may have under way then are discards.
const idleFrozen = time.Second

// idle waits for those who write past the filesystems, to another partition say.
func idle(ctx context.Context, device string) error {
	id, err := block.Identify(device)
	if err != nil {
		return err
	}
	return track.WaitIdle(ctx, id.Disk, idleFrozen)
}
