package vault

import (
	"context"
	"errors"
	"fmt"
	"time"

	format "tidemark/format/vault"
	"tidemark/vault/store"
)

const (
	// MinGrace is the least time between that a pack is declared dead and that it is removed.
	MinGrace = time.Hour
	// DefaultGrace is what is usual.
	DefaultGrace = 24 * time.Hour
)

// PruneOptions say how a vault is pruned. The zero value will do for most.
type PruneOptions struct {
	// Grace is how long a pack is dead before it is removed, at least MinGrace; 0 stands
	// for DefaultGrace.
	Grace time.Duration
	// Now removes at once what is not needed. It is refused with ErrBusy while anybody is at
	// work.
	Now bool
	// DryRun does nothing, and tells what would be done.
	DryRun bool
	// Without are points that are taken for forgotten, in a dry run.
	Without []format.PointName
}

// Pruned is what was done, or would be. Bytes are those of packs.
type Pruned struct {
	Points    int   `json:"points"`        // that there are
	Needed    int   `json:"needed"`        // packs
	Declared  int   `json:"declared"`      // packs and generations that are dead from now on
	Rewritten int   `json:"rewritten"`     // packs that got a new generation
	Written   int64 `json:"bytes_written"` // of these
	Removed   int   `json:"removed"`       // packs and generations
	Freed     int64 `json:"bytes_freed"`   // of what was removed
	Waiting   int   `json:"waiting"`       // packs and generations that go later
	Later     int64 `json:"bytes_later"`   // of these, and of what was declared
	Unused    int64 `json:"bytes_unused"`  // in packs that stay, of segments that no point needs
	// Locked is how many packs and generations would have been removed, and nobody can remove yet.
	Locked      int        `json:"locked"`
	LockedBytes int64      `json:"bytes_locked"`           // of these
	LockedUntil *time.Time `json:"locked_until,omitempty"` // when the lock of the last of these ends
	// Writers is how many backups and copies are at work. While there is one nothing is declared
	// dead, and nothing rewritten.
	Writers int `json:"writers"`
}

// Prune removes what no point needs. A pack without a segment that is reached from one goes as a whole;
// of a pack that is mostly not needed a new generation is written without that, and the old one
// goes.
//
// Nothing is removed that a point needs, or will need that is being written; all times are those of
// the store's clock, so that no clock of a machine matters. What no point needs, a pack or an
// old generation, is declared dead first. A later prune removes it, if it was dead for
// the grace time when that prune listed the points, and none of them needs anything that
// only it has. So at its removal, L being that listing and D when it was declared, L ≥ D + grace, and
// a point that needs it must have appeared after L. A Writer uses only the newest generation
// of a pack, none that was dead when it began, and no base that was not there then. So D is
// after it began. If it took at most half of the grace time it appeared before D + grace ≤ L, a
// contradiction; if it took longer it looked again, half of the grace time before it
// appeared at most, and saw that all that it needs was in the newest generations, and nothing of
// it dead, so D is after that look, and the same follows.
//
// A point may thus appear that needs segments which the newest generation has not. They are found
// in the old one, which is there still. The next prune sees that point, and writes a generation
// that has them before anything is removed: nothing of a pack is in the same prune.
//
// While a backup has a lease nothing is declared, so that a long one does not fail. That all is
// right does not hang on leases, nor does Now: it declares what is dead, and then looks for
// others and for new points once more. Who begins after that uses nothing of it.
//
// In a vault with a lock what is locked stays, and is dead: a later prune removes it.
//
// When any page of a map cannot be read nothing is removed, but for points that Repair knows to have
// lost something.
func (v *Vault) Prune(ctx context.Context, o PruneOptions) (p Pruned, err error) {
	if o.Grace == 0 {
		o.Grace = DefaultGrace
	}
	if o.Grace < MinGrace {
		return p, fmt.Errorf("vault: a grace time of %v: at least %v are needed", o.Grace, MinGrace)
	}
	if len(o.Without) > 0 && !o.DryRun {
		return p, errors.New("vault: points are taken for forgotten in a dry run alone")
	}
	work := prune
	if o.Now {
		work = pruneNow
	}
	l, err := v.takeLease(ctx, work)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, l.end()) }()
	if err := v.sync(ctx); err != nil {
		return p, err
	}
	m, err := v.mark(ctx, o.Without)
	if err != nil {
		return p, fmt.Errorf("vault: nothing was removed: %w", err)
	}
	p.Points = len(m.points)
	s := sweep{v: v, o: o, lease: l, live: m.live, done: &p}
	if err := s.others(ctx); err != nil {
		return p, err
	}
	if err := s.packs(ctx); err != nil {
		return p, err
	}
	if o.Now && !o.DryRun {
		if err := v.stillAlone(ctx, l, m); err != nil {
			return p, err
		}
	}
	if err := s.remove(ctx); err != nil || o.DryRun {
		return p, err
	}
	return p, s.leftovers(ctx)
}

// marked is what points need.
type marked struct {
	live   refSet
	points map[format.PointName]bool
	broken map[format.PointName]bool // that lost something
}

// mark walks the maps of all points, each shared page once.
func (v *Vault) mark(ctx context.Context, without []format.PointName) (*marked, error) {
	names, err := v.pointNames(ctx, format.ID{})
	if err != nil {
		return nil, err
	}
	m := &marked{live: refSet{}, points: map[format.PointName]bool{}}
	if m.broken, err = v.lostPoints(ctx); err != nil {
		return nil, err
	}
	forgotten := map[format.PointName]bool{}
	for _, name := range without {
		forgotten[name] = true
	}
	for _, name := range names {
		if forgotten[name] {
			continue
		}
		p, err := v.Point(ctx, name)
		if errors.Is(err, store.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		m.points[name] = true
		t := v.treeOf(p.Point)
		if err := m.page(ctx, t, t.top(format.Level(t.size)), m.broken[name]); err != nil {
			if _, gone := v.Point(ctx, name); errors.Is(gone, store.ErrNotExist) { // and what it needed, too
				delete(m.points, name)
				continue
			}
			return nil, fmt.Errorf("%v: %w", name, err)
		}
	}
	return m, nil
}

// page notes the segments that a page and those below need, each page once. What lies below a page
// that is lost of a broken point cannot be read by anybody.
func (m *marked) page(ctx context.Context, t tree, n node, broken bool) error {
	if n.ref.IsZero() || m.live.has(n.ref) {
		return nil
	}
	var err error
	if n.level > 0 {
		err = t.children(ctx, n, everywhere, func(_ int, child node) error { return m.page(ctx, t, child, broken) })
	} else {
		var l format.Leaf
		l, err = t.v.leaf(ctx, n.ref)
		for _, e := range l {
			m.live.add(e.Ref)
		}
	}
	if err != nil && broken && ours(err) {
		return nil
	}
	m.live.add(n.ref)
	return err
}

// stillAlone fails when anybody is at work, or when there are other points than were marked: this
// machine may have slept, and its lease have ended meanwhile.
func (v *Vault) stillAlone(ctx context.Context, l *lease, m *marked) error {
	all, err := v.leases(ctx)
	if err != nil {
		return err
	}
	if _, err := l.judge(all); err != nil {
		return err
	}
	names, err := v.pointNames(ctx, format.ID{})
	if err != nil {
		return err
	}
	there := 0
	for _, name := range names {
		if m.points[name] {
			there++
		}
	}
	if there != len(names) {
		return fmt.Errorf("vault: %v: %w: a point appeared meanwhile: try again", v.store, ErrBusy)
	}
	return nil
}
