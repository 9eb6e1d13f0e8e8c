package restore

import (
	"cmp"
	"context"
	"errors"
	"os"
	"slices"
	"sync"

	"tidemark/extent"
	"tidemark/format/state"
	"tidemark/track"
	"tidemark/track/bpf"
	"tidemark/transfer/mirror"
	"tidemark/transfer/origin"
	"tidemark/transfer/target"
	"tidemark/transfer/transaction"
	"tidemark/words"
)

// follower makes a target a mirror of what the point is of: it equals that at the mark of the point.
// The checksums that a mirror needs are gathered from what is restored.
type follower struct {
	source state.Source
	store  *mirror.Store

	mu     sync.Mutex
	failed error // the first error; guarded by mu
}

// follow finds out whether the target can become a mirror: the whole point is restored, and what it
// is of is on this machine, where its tracking vouches for the mark. From here on the tracking keeps
// that mark for the target, in the name under which a mirror keeps it: the claim of the vault ends
// with its next point. Where the restore fails the claim stays, as that of a mirror that is removed,
// until so many others are newer that it is dropped. Without a mirror the restore is none the worse.
func (r *restoration) follow(ctx context.Context) error {
	p := r.point
	if p == nil || r.origin || !p.Range.Empty() || track.Mark(p.Point.Mark).Kind() != bpf.Kind {
		return nil
	}
	if host, err := os.Hostname(); err != nil || p.Point.Host != host {
		return err
	}
	var lost error
	for path, id := range origin.Devices() {
		is := origin.Of(path, id)
		if !slices.Contains(p.Disk.KnownBy, is.Stable) || r.to.Device && id.Overlaps(r.to.ID) {
			continue
		}
		if lost = r.claim(ctx, path); lost == nil {
			lost = r.gather(is)
			break
		}
	}
	if lost != nil && ctx.Err() == nil {
		r.unfollow(lost)
	}
	return ctx.Err()
}

// claim has the tracking of a source keep the mark of the point for the target. Nothing was in flight
// at the mark of a point.
func (r *restoration) claim(ctx context.Context, source string) (err error) {
	src, err := origin.Open(source)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	live, err := bpf.Attach(ctx, src, r.o.Track)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, live.Close()) }()
	return live.Keep(ctx, r.to.Owner(), track.Mark(r.point.Point.Mark), true)
}

// gather begins to gather checksums.
func (r *restoration) gather(source state.Source) error {
	r.follows = &follower{source: source, store: mirror.New(transaction.Disk{Device: r.to.Disk}, r.to.Dir)}
	r.store.Holds = r.follows.holds
	return r.follows.store.Gather(r.rep.Size, r.copy.State.BlockSize, source)
}

// holds takes the checksums of what the target gets, or has.
func (f *follower) holds(e extent.Extent, data []byte) {
	if err := f.store.Holds(e.Off, data); err != nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.failed = cmp.Or(f.failed, err)
	}
}

// unfollow gives a mirror up, and says why.
func (r *restoration) unfollow(why error) {
	if r.follows != nil {
		why = errors.Join(why, r.follows.store.Close())
	}
	r.follows, r.store.Holds = nil, nil
	r.o.note("%s: it does not become a mirror of %s: %v", r.rep.Target, r.point.Disk.Name, why)
}

// leave makes the target a mirror, or gives up its folder. The content is complete.
func (r *restoration) leave(ctx context.Context) error {
	if f := r.follows; f != nil {
		err := f.failed
		if r.rep.Moved {
			err = errors.New("its partition table is another by now")
		}
		if err == nil {
			err = f.store.Become(ctx, track.Mark(r.point.Point.Mark), r.rep.Time)
		}
		if err == nil {
			r.o.note("%s: it is a mirror of %s as of %s: \"tidemark mirror %s %s\" goes on from there",
				r.rep.Target, origin.Describe(f.source), words.Time(r.rep.Time), f.source.Path, r.rep.Target)
			return nil
		}
		r.unfollow(err)
	}
	return dissolve(r.to)
}

// dissolve gives up the folder of a target that is no mirror, with what was gathered for one.
func dissolve(t *target.Target) error {
	if err := mirror.Forget(t.Dir); err != nil {
		return err
	}
	return t.Dissolve()
}
