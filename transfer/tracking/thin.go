package tracking

import (
	"context"
	"errors"
	"fmt"

	"tidemark/linux/dm"
	"tidemark/track"
	"tidemark/track/bpf"
	"tidemark/track/thin"
	"tidemark/view"
)

// ErrThinAlone says that of the tracker and the view "thin" one was asked for, and something else
// in place of the other.
var ErrThinAlone = errors.New(`the tracker "thin" and the view "thin" go together: a snapshot is both`)

// Thin returns the snapshots that are tracker and view of all sources, when that is asked for,
// by the tracker or the view, or can be used and nothing else was asked for; otherwise nil. stored
// are the marks that are stored with the copies. The error wraps ErrThinAlone, or is one of package
// track/thin. StateDir has to be set.
func (o Options) Thin(ctx context.Context, sources []thin.Source, stored []track.Mark, kind string, hooks view.Hooks) (*thin.Group, error) {
	automatic := kind == "" || kind == "auto"
	asked := o.Tracker == thin.Kind || kind == thin.Kind
	switch {
	case !asked && !(automatic && o.automatic()):
		return nil, nil
	case o.Tracker != thin.Kind && !o.automatic(), kind != thin.Kind && !automatic:
		return nil, ErrThinAlone
	}
	for i, s := range sources {
		err := thin.Judge(s.Device)
		if err == nil && !asked {
			var has bool
			if has, err = o.liveHas(ctx, s.Device, stored[i]); has {
				err = fmt.Errorf("%w: the mirror's mark is of the tracking by %s, which goes on", thin.ErrUnfit, bpf.Kind)
			}
		}
		if err != nil {
			return nil, o.unthin(ctx, err, asked)
		}
	}
	g, err := thin.Open(ctx, sources, thin.Options{
		StateDir: o.StateDir, RunDir: o.Track.RunDir, Hooks: hooks, MaxFreeze: o.MaxFreeze, Note: o.Note,
	})
	if err != nil {
		return nil, o.unthin(ctx, err, asked)
	}
	return g, nil
}

// unthin is nil for an error that only means that something else is to be used, which is told.
func (o Options) unthin(ctx context.Context, err error, asked bool) error {
	switch {
	case err == nil || asked:
		return err
	case errors.Is(err, thin.ErrNotThin), errors.Is(err, dm.ErrNotSupported):
		return nil
	case ctx.Err() != nil:
		return err
	}
	o.Note("not using snapshots of the pool: %v", err)
	return nil
}

// ReleaseThin removes the snapshots that are kept for an owner whose copy counts from something else
// from now on: they would take room in the pool for nothing. What cannot be removed is told.
func (o Options) ReleaseThin(ctx context.Context, owner string) {
	err := thin.Release(ctx, owner, thin.Options{StateDir: o.StateDir, RunDir: o.Track.RunDir, Note: o.Note})
	if err != nil {
		o.Note("%v", err)
	}
}
