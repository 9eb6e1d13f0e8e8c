package pairs

import (
	"context"
	"errors"
	"fmt"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/track"
	"tidemark/track/bpf"
	"tidemark/transfer/origin"
	"tidemark/transfer/target"
	"tidemark/transfer/transaction"
)

// copied is the tracker of a mirror's image. The image is its source at the moment of its mark, so
// what differs between it at two marks is what changed in the source between them, and the
// tracking of the source tells. While it is open no run can update the image.
type copied struct {
	track.Tracker                // of the source
	source        *block.Device  // of the mirror
	image         *target.Target // locked
	mark          track.Mark     // of the image
}

// imageTracker returns the tracker of a source that is the image of a mirror whose own source is
// tracked on this machine; nil where it is none, or where that cannot be, which is told. An image that
// somebody else has written to is not what its mark says.
func (s *session) imageTracker(ctx context.Context, src *block.Device) (_ track.Tracker, err error) {
	if s.vault == nil || src.IsDevice() || s.o.Tracker != "" && s.o.Tracker != "auto" {
		return nil, nil
	}
	t, err := target.Find(src.Path(), s.o.StateDir)
	if err != nil {
		return nil, err
	}
	if err := t.Lock(false); err != nil {
		return nil, errors.Join(fmt.Errorf("source: %s: %w", src.Path(), err), t.Close())
	}
	known, err := t.Known()
	if err != nil { // it is none, mostly
		if errors.Is(err, target.ErrNoMirror) {
			err = nil
		}
		return nil, errors.Join(err, t.Close())
	}
	c := &copied{image: t, mark: track.Mark(known.Mark)}
	why, err := c.open(ctx, src, known, s.o)
	if err == nil && why == "" {
		return c, nil
	}
	if why != "" {
		s.o.note("%s: what changed in it cannot be told (%s): reading all of it", src.Path(), why)
	}
	return nil, errors.Join(err, c.Close())
}

// open says in words why the changes of an image cannot be told, "" where they can.
func (c *copied) open(ctx context.Context, src *block.Device, known target.Known, o Options) (why string, err error) {
	if !known.Complete || known.Pending || c.mark.Kind() != bpf.Kind || known.Size != src.Size() {
		return "its last run left no mark of a tracking by " + bpf.Kind, nil
	}
	now, err := transaction.Disk{Device: src}.Stamp()
	if err != nil {
		return "", err
	}
	if differs := transaction.Stamp(known.Target).Differs(now); differs != "" {
		return differs, nil
	}
	if c.source, err = origin.Open(known.Source.Path); err != nil {
		return err.Error(), nil
	}
	if !origin.Same(known.Source, origin.OfDevice(c.source)) || c.source.Size() != src.Size() {
		return fmt.Sprintf("%s is another disk than it is the copy of", known.Source.Path), nil
	}
	live, err := bpf.Attach(ctx, c.source, o.Track)
	if err != nil {
		return err.Error(), ctx.Err()
	}
	c.Tracker = live
	if err := live.Vouch(ctx, c.mark); err != nil {
		return err.Error(), ctx.Err()
	}
	return "", nil
}

// Traits implements track.Tracker: nobody writes to the image.
func (c *copied) Traits() track.Traits { return track.Traits{NamesChanges: true} }

// Cut implements track.Tracker: the moment stays that of the last update.
func (c *copied) Cut(context.Context) (track.Cut, error) { return track.Cut{Mark: c.mark}, nil }

// Changes implements track.Tracker. A mark that the tracking of the source does not know, or one
// that is newer than the image, is lost.
func (c *copied) Changes(ctx context.Context, since, until track.Mark) (extent.Set, error) {
	if since == c.mark && (until == "" || until == c.mark) {
		return extent.Set{}, nil
	}
	set, err := c.Tracker.Changes(ctx, since, c.mark)
	if err != nil && !errors.Is(err, track.ErrMarkLost) && ctx.Err() == nil {
		err = track.About(since, track.Lost("%v", err))
	}
	return set, err
}

// Drain implements track.Tracker: no write is under way.
func (c *copied) Drain(context.Context) error { return nil }

// Close implements track.Tracker, and lets the image be updated.
func (c *copied) Close() error {
	err := c.image.Close()
	if c.Tracker != nil {
		err = errors.Join(err, c.Tracker.Close())
	}
	if c.source != nil {
		err = errors.Join(err, c.source.Close())
	}
	return err
}
