package pairs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tidemark/extent"
	"tidemark/format/state"
	"tidemark/track"
	"tidemark/transfer"
)

// Planned is the outcome of a report of Plan.
const Planned = "planned"

// Plan returns what Mirror would read if it ran now, without starting, making or
// writing anything. The bytes read are an estimate: what is in use now, or has
// changed by now; what is written depends on the content.
func Plan(ctx context.Context, pairs []Pair, o Options) ([]transfer.Report, error) {
	o = o.withDefaults()
	began := time.Now()
	s := &session{o: o}
	defer s.close()
	if err := s.find(pairs); err != nil {
		return nil, err
	}
	provider, err := s.view(ctx)
	if err != nil {
		return nil, err
	}
	var reports []transfer.Report
	for i, p := range pairs {
		rep, err := plan(ctx, p, s.sources[i], s.targets[i], o)
		if err != nil {
			return nil, err
		}
		rep.View, rep.Took = provider.Kind(), time.Since(began)
		rep.TookMS = float64(rep.Took.Microseconds()) / 1000
		reports = append(reports, rep)
	}
	return reports, nil
}

func plan(ctx context.Context, p Pair, src *source, t *target, o Options) (transfer.Report, error) {
	rep := transfer.Report{Source: p.Source, Target: p.Target, Tracker: track.KindScan, Outcome: Planned}
	st, err := Status(p.Target, o.StateDir)
	if err != nil && !errors.Is(err, ErrNoMirror) && !t.rebuild {
		return rep, err
	}
	switch {
	case t.empty() || t.rebuild || t.stranger && !st.Complete:
		st = Known{}
	case t.stranger:
		st.Mark = ""
	}
	st.Foreign = st.Foreign || st.Size == 0 && !t.empty()
	changes, err := o.changes(ctx, src, st.State, &rep)
	if err != nil {
		return rep, err
	}
	if st.BlockSize > 0 {
		changes = changes.Align(st.BlockSize, src.Size())
	}
	rep.Changed, rep.Read, rep.Mark = changes.Bytes(), changes.Bytes(), st.Mark
	return rep, nil
}

// changes returns what a run would read, and notes how it would go about it.
func (o Options) changes(ctx context.Context, src *source, st state.State, rep *transfer.Report) (set extent.Set, err error) {
	whole := extent.Extent{Len: src.Size()}
	tracked, err := o.tracked(ctx, src)
	if err != nil {
		return extent.Set{}, err
	}
	e, err := o.era(ctx, src, track.Mark(st.Mark))
	if err != nil {
		return extent.Set{}, err
	}
	switch {
	case e != nil:
		rep.Tracker = track.KindEra
		defer func() { err = errors.Join(err, e.Close()) }()
	case o.Tracker == track.KindLive || o.automatic() && src.IsDevice():
		rep.Tracker = track.KindLive
	}
	switch {
	case !st.Complete && st.Copied > 0:
		rep.Mode = "resume"
		return extent.NewSet(extent.Extent{Off: st.Copied, Len: max(0, src.Size()-st.Copied)}), nil
	case !st.Complete:
		rep.Mode = "full"
		if st.Foreign {
			rep.Mode = "scan"
		}
		return src.Data(whole)
	case rep.Tracker == track.KindScan || st.Mark == "":
		rep.Mode = "scan"
		return src.Data(whole)
	case e != nil:
		return o.sinceMark(ctx, e, src, track.Mark(st.Mark), rep)
	case !tracked:
		rep.Mode, rep.MarkLost = "scan", fmt.Sprintf("%s is not tracked", src.Path())
		return src.Data(whole)
	}
	return o.since(ctx, src, track.Mark(st.Mark), rep)
}

// sinceMark returns what changed since the mark that is stored with the mirror.
func (o Options) sinceMark(ctx context.Context, tracker track.Tracker, src *source, mark track.Mark, rep *transfer.Report) (extent.Set, error) {
	rep.Mode = "incremental"
	set, err := tracker.Changes(ctx, mark, "")
	if errors.Is(err, track.ErrMarkLost) {
		rep.Mode, rep.MarkLost = "scan", err.Error()
		return src.Data(extent.Extent{Len: src.Size()})
	}
	return set, err
}

func (o Options) since(ctx context.Context, src *source, mark track.Mark, rep *transfer.Report) (set extent.Set, err error) {
	live, err := track.OpenLive(ctx, src.Path(), o.Track)
	if err != nil {
		return set, err
	}
	defer func() { err = errors.Join(err, live.Close()) }()
	return o.sinceMark(ctx, live, src, mark, rep)
}
