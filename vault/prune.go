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
}

// Pruned is what was done, or would be.
type Pruned struct {
	Points   int   `json:"points"`   // that there are
	Declared int   `json:"declared"` // packs that are dead from now on
	Removed  int   `json:"removed"`  // packs
	Freed    int64 `json:"freed"`    // bytes of these
	Waiting  int   `json:"waiting"`  // packs that are dead, and have been for too short a time
	Needed   int   `json:"needed"`   // packs
}

// Prune removes what no point needs: packs without a segment that is reached from one.
//
// Nothing is removed that a point needs, or will need that is being written; all times are those of
// the store's clock, so that no clock of a machine matters. A pack that no point needs is
// declared dead first. A later prune removes it, if it was dead for the grace time when that prune
// listed the points, and none of them needs it. So at its removal, L being that listing and D
// when it was declared, L ≥ D + grace, and a point that needs it must have appeared after L.
// A Writer uses no pack that was dead when it began, and no base that was not there then. So D is
// after it began. If it took at most half of the grace time it appeared before D + grace ≤ L, a
// contradiction; if it took longer it looked again, half of the grace time before it
// appeared at most, and saw that nothing that it needs was dead, so D is after that look, and the
// same follows. The lease of a writer keeps its packs from being declared dead meanwhile, so that a
// long backup does not fail; that it is right does not hang on leases, but for Now.
//
// When any page of a map cannot be read nothing is removed.
func (v *Vault) Prune(ctx context.Context, o PruneOptions) (p Pruned, err error) {
	if o.Grace == 0 {
		o.Grace = DefaultGrace
	}
	if o.Grace < MinGrace {
		return p, fmt.Errorf("vault: a grace time of %v: at least %v are needed", o.Grace, MinGrace)
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
	others, err := v.leases(ctx)
	if err != nil {
		return p, err
	}
	live, points, err := v.mark(ctx)
	if err != nil {
		return p, fmt.Errorf("vault: nothing was removed: %w", err)
	}
	p.Points = points
	s := sweep{v: v, o: o, now: l.begun, live: live, done: &p}
	for _, h := range others {
		if h.name != l.first && h.alive(s.now) && (s.oldest.IsZero() || h.began().Before(s.oldest)) {
			s.oldest = h.began()
		}
	}
	if err := s.packs(ctx); err != nil || o.DryRun {
		return p, err
	}
	return p, s.leftovers(ctx, others)
}

// mark returns the packs that points need.
func (v *Vault) mark(ctx context.Context) (map[format.ID]bool, int, error) {
	names, err := v.pointNames(ctx, format.ID{})
	if err != nil {
		return nil, 0, err
	}
	live, seen, points := map[format.ID]bool{}, refSet{}, 0
	for _, name := range names {
		p, err := v.Point(ctx, name)
		if errors.Is(err, store.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, 0, err
		}
		points++
		t := v.treeOf(p.Point)
		if err := t.mark(ctx, t.top(format.Level(t.size)), seen, live); err != nil {
			return nil, 0, fmt.Errorf("%v: %w", name, err)
		}
	}
	return live, points, nil
}

// mark notes the packs that a page and those below need, each page once.
func (t tree) mark(ctx context.Context, n node, seen refSet, live map[format.ID]bool) error {
	if n.ref.IsZero() || !seen.add(n.ref) {
		return nil
	}
	live[n.ref.Pack] = true
	if n.level > 0 {
		return t.children(ctx, n, func(_ int, child node) error { return t.mark(ctx, child, seen, live) })
	}
	l, err := t.v.leaf(ctx, n.ref)
	for _, e := range l {
		live[e.Ref.Pack] = true
	}
	return err
}

// sweep declares packs dead, and removes those that have been for long.
type sweep struct {
	v      *Vault
	o      PruneOptions
	now    time.Time // by the store's clock, before the points were listed
	oldest time.Time // when the work began that has lasted longest; zero: there is none
	live   map[format.ID]bool
	done   *Pruned
}

func (s *sweep) packs(ctx context.Context) error {
	dead := map[string]time.Time{}
	err := s.v.store.List(ctx, format.DeadPrefix, func(i store.Info) error {
		dead[i.Name] = i.Time
		return nil
	})
	if err != nil {
		return err
	}
	var all []store.Info
	err = s.v.store.List(ctx, format.PacksPrefix, func(i store.Info) error {
		all = append(all, i)
		return nil
	})
	if err != nil {
		return err
	}
	for _, i := range all {
		name, alien := format.ParsePackName(i.Name)
		if alien != nil {
			continue
		}
		since, isDead := dead[name.Dead()]
		delete(dead, name.Dead())
		if err := s.pack(ctx, name, i, since, isDead); err != nil {
			return err
		}
	}
	for name := range dead { // of packs that are gone
		if err := s.remove(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

func (s *sweep) pack(ctx context.Context, name format.PackName, i store.Info, since time.Time, isDead bool) error {
	switch {
	case s.live[name.ID]:
		s.done.Needed++
		if isDead { // declared when a point that needs it was on its way
			return s.remove(ctx, name.Dead())
		}
		return nil
	case s.o.Now || isDead && !s.now.Before(since.Add(s.o.Grace)):
		s.done.Removed++
		s.done.Freed += i.Size
		if err := s.remove(ctx, i.Name); err != nil || !isDead {
			return err
		}
		return s.remove(ctx, name.Dead())
	case isDead:
		s.done.Waiting++
		return nil
	case !s.oldest.IsZero() && !i.Time.Before(s.oldest):
		s.done.Waiting++ // it may be of a point that is on its way
		return nil
	}
	s.done.Declared++
	if s.o.DryRun {
		return nil
	}
	return s.v.seal(ctx, name.Dead(), nil)
}

func (s *sweep) remove(ctx context.Context, name string) error {
	if s.o.DryRun {
		return nil
	}
	return s.v.store.Remove(ctx, name)
}

// leftovers removes what those left who died.
func (s *sweep) leftovers(ctx context.Context, leases []heldLease) error {
	for _, h := range leases {
		if !h.alive(s.now) {
			if err := s.remove(ctx, h.name); err != nil {
				return err
			}
		}
	}
	var old []string
	err := s.v.store.List(ctx, store.TempPrefix, func(i store.Info) error {
		if s.now.Sub(i.Time) > DefaultGrace {
			old = append(old, i.Name)
		}
		return nil
	})
	for _, name := range old {
		if err == nil {
			err = s.remove(ctx, name)
		}
	}
	return err
}
