// Package tracking chooses the tracker of a source.
//
// For most uses, make a [Chooser] for the sources of one run, and Open the tracker of each, where
// Thin has not chosen for all of them.
//
// The package knows which tracker is the right one for a device, what stands against it, and
// what the mark that is stored with a mirror has to do with it. Trackers themselves are in
// package track and those below it. [Drain] is what starting to track by eBPF needs, by a
// freeze: the program's main must call reexec.Main first. A Chooser serves one goroutine at
// a time.
package tracking

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/linux/dmera"
	"tidemark/linux/mounts"
	"tidemark/linux/sysfs"
	"tidemark/track"
	"tidemark/track/bpf"
	"tidemark/track/cow"
	"tidemark/track/era"
	"tidemark/transfer/origin"
	"tidemark/view"
)

// Options say how to track. The zero value works.
type Options struct {
	Track     bpf.Options   // where and how to track by eBPF
	Tracker   string        // "auto" (or ""), "bpf", "era", "thin" (see Thin), "cow:" with a store, or "scan"
	StateDir  string        // of what era devices have missed
	MaxFreeze time.Duration // bounds the frozen time when tracking is started
	// Dry has nothing started: what would be started is a tracker whose marks are lost.
	Dry bool
	// Note is told what the user should know. It must not be nil.
	Note func(format string, args ...any)
}

// Chooser chooses the trackers of the sources of one run.
type Chooser struct {
	Options
	// Frozen is for how long the sources' users had to wait because tracking was started.
	Frozen time.Duration

	eras map[string]*era.Tracker // by disk: a device answers one at a time
}

// Open chooses the tracker of a source, by the mark that is stored with its mirror; "" is
// none. untracked says why its changes are not tracked, "" where they are. Where the choice
// is left to it, no error of tracking is one of Open: there is always the scan.
func (c *Chooser) Open(ctx context.Context, src *block.Device, stored track.Mark) (_ track.Tracker, untracked string, err error) {
	if store, ok := strings.CutPrefix(c.Tracker, cow.Kind+":"); ok {
		t, err := cow.Open(src, store)
		return t, "", err
	}
	if c.Tracker == track.KindScan || c.automatic() && !src.IsDevice() {
		if untracked = "as was asked for"; !src.IsDevice() {
			untracked = overFile(src.Path())
		}
		return track.NewScan(src.Size()), untracked, nil
	}
	if e, err := c.era(ctx, src, stored); e != nil || err != nil {
		return e, "", err
	}
	live, err := c.live(ctx, src)
	switch {
	case err == nil:
		return live, "", nil
	case !c.automatic() || ctx.Err() != nil:
		return nil, "", err
	}
	c.Note("%s: changes cannot be tracked (%v): reading all of it, if it is mounted while it is frozen (see --max-freeze and --force-freeze)", src.Path(), err)
	return track.NewScan(src.Size()), err.Error(), nil
}

// live returns the tracker by eBPF, or what stands for it in a dry run.
func (c *Chooser) live(ctx context.Context, src *block.Device) (track.Tracker, error) {
	if c.Dry {
		return c.attach(ctx, src)
	}
	o := c.Track
	o.Drain = func(ctx context.Context) error {
		frozen, err := bpf.Drain(ctx, src, c.MaxFreeze)
		c.Frozen += frozen
		return err
	}
	t, err := bpf.Open(ctx, src, o)
	if err != nil {
		return nil, err
	}
	return t, nil
}

// overFile says that a file is not tracked, and names the loop devices over it, which are.
func overFile(path string) string {
	text := "a file cannot be: name the device that is in use, and run as root"
	table, err := mounts.Read()
	if err != nil {
		return text
	}
	over, err := table.LoopsOver(path)
	for _, d := range over {
		if node, nerr := sysfs.Node(d); err == nil && nerr == nil {
			return fmt.Sprintf("a file cannot be: name the device over it, %s, and run as root", node)
		}
	}
	return text
}

// attach returns the tracker of a source that is tracked already, or one that says that
// it is not.
func (c *Chooser) attach(ctx context.Context, src *block.Device) (track.Tracker, error) {
	live, err := bpf.Attach(ctx, src, c.Track)
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

func (n notStarted) Vouch(_ context.Context, m track.Mark) error {
	return &track.LostError{Mark: m, Reason: n.why}
}

func (n notStarted) Changes(_ context.Context, since, _ track.Mark) (extent.Set, error) {
	return extent.Set{}, &track.LostError{Mark: since, Reason: n.why}
}

// era returns the tracker of a dm-era device, the same for all sources; nil where another
// one is to be used.
func (c *Chooser) era(ctx context.Context, src *block.Device, stored track.Mark) (*era.Tracker, error) {
	if e := c.eras[src.Identity().Disk]; e != nil {
		return e, nil
	}
	e, err := c.Era(ctx, src, stored)
	if e == nil || err != nil {
		return nil, err
	}
	if c.eras == nil {
		c.eras = map[string]*era.Tracker{}
	}
	c.eras[src.Identity().Disk] = e
	return e, nil
}

// automatic reports whether the choice of the tracker is left to us.
func (o Options) automatic() bool { return o.Tracker == "" || o.Tracker == "auto" }

// Era returns the tracker of a dm-era device when it is asked for, or can be used
// and no other one has the mirror's mark; otherwise nil.
func (o Options) Era(ctx context.Context, src *block.Device, stored track.Mark) (*era.Tracker, error) {
	switch {
	case o.Tracker == era.Kind:
		return o.openEra(ctx, src)
	case !o.automatic() || !src.IsMapped():
		return nil, nil
	}
	e, err := o.openEra(ctx, src)
	switch {
	case errors.Is(err, dmera.ErrNotEra):
		return nil, nil
	case err != nil && ctx.Err() != nil:
		return nil, err
	case err != nil:
		o.Note("%s: not using its eras: %v", src.Path(), err)
		return nil, nil
	}
	has, err := o.liveHas(ctx, src, stored)
	if has {
		o.Note("%s: not using its eras: the mirror's mark is of the tracking by bpf, which goes on", src.Path())
		return nil, e.Close()
	}
	if err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

// liveHas reports whether tracking by eBPF is on and can vouch for the mark.
func (o Options) liveHas(ctx context.Context, src *block.Device, m track.Mark) (has bool, err error) {
	if m.Kind() != bpf.Kind {
		return false, nil
	}
	live, err := bpf.Attach(ctx, src, o.Track)
	if err == nil {
		err = errors.Join(live.Vouch(ctx, m), live.Close())
	}
	if ctx.Err() != nil {
		return false, err
	}
	return err == nil, nil // whatever is wrong with it, it does not vouch
}

// openEra opens the tracker of a dm-era device, unless freezing the device would
// stop the writes to its metadata as well.
func (o Options) openEra(ctx context.Context, src *block.Device) (*era.Tracker, error) {
	e, err := era.Open(ctx, src, era.Options{
		RunDir: o.Track.RunDir, StateDir: o.StateDir, StableName: origin.LastingName,
	})
	if err != nil {
		return nil, err
	}
	covered, err := view.Covered([]*block.Device{src}, e.MetaPath())
	if err == nil && len(covered) > 0 {
		err = fmt.Errorf("%w: its metadata %s lies on a filesystem of its own", era.ErrUnfit, e.MetaPath())
	}
	if err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
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
	_, err = bpf.Drain(ctx, d, limit)
	return err
}
