package vault

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	format "tidemark/format/vault"
	"tidemark/vault/store"
)

// sweep is the part of a prune behind the marking: it declares what is not needed dead, rewrites
// what mostly is not, and then removes what has been dead for long.
type sweep struct {
	v       *Vault
	o       PruneOptions
	lease   *lease
	held    []heldLease
	live    refSet
	markers []string     // of packs that are gone
	gone    []generation // to be removed
	done    *Pruned
}

// generation is a pack, or an older one of the same id. Times are nanoseconds by the store's clock.
type generation struct {
	known
	written int64
	dead    int64 // since when; 0: it is not
}

// others lists who else is at work.
func (s *sweep) others(ctx context.Context) (err error) {
	s.held, err = s.v.leases(ctx)
	for _, h := range s.held {
		if h.name != s.lease.first && h.alive(s.lease.begun) && h.Work != prune {
			s.done.Writers++
		}
	}
	return err
}

func (s *sweep) packs(ctx context.Context) error {
	all, err := s.list(ctx)
	if err != nil {
		return err
	}
	for len(all) > 0 {
		n := 1
		for n < len(all) && all[n].name.ID == all[0].name.ID {
			n++
		}
		if err := s.pack(ctx, all[:n]); err != nil {
			return err
		}
		all = all[n:]
	}
	return nil
}

// list returns all packs, those of one id behind each other, the newest generation first.
func (s *sweep) list(ctx context.Context) (all []generation, err error) {
	dead := map[format.PackName]int64{}
	err = s.v.store.List(ctx, format.DeadPrefix, func(i store.Info) error {
		if name, alien := format.ParsePackName(i.Name); alien == nil && name.Dead() == i.Name {
			dead[name] = i.Time.UnixNano()
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = s.v.store.List(ctx, format.PacksPrefix, func(i store.Info) error {
		if name, alien := format.ParsePackName(i.Name); alien == nil && name.String() == i.Name {
			g := generation{known: known{name, i.Size}, written: i.Time.UnixNano()}
			if since, ok := dead[name]; ok { // one that is older than the pack is of an earlier one
				g.dead = max(since, g.written)
			}
			delete(dead, name)
			all = append(all, g)
		}
		return nil
	})
	for name := range dead {
		s.markers = append(s.markers, name.Dead())
	}
	slices.SortFunc(all, func(a, b generation) int {
		return cmp.Or(bytes.Compare(a.name.ID[:], b.name.ID[:]), cmp.Compare(b.name.Generation, a.name.Generation))
	})
	return all, err
}

// pack judges the generations of one pack.
func (s *sweep) pack(ctx context.Context, all []generation) error {
	bits, isLive := s.live[all[0].name.ID]
	if !isLive || !slices.ContainsFunc(bits, func(b uint64) bool { return b != 0 }) {
		return s.unneeded(ctx, all, true)
	}
	newest := all[0]
	s.done.Needed++
	if newest.dead != 0 { // declared when a point that needs it was on its way
		if err := s.erase(ctx, newest.name.Dead()); err != nil {
			return err
		}
		newest.dead, all[0].dead = 0, 0
	}
	t, err := s.v.exactTable(ctx, newest.known)
	if err != nil {
		if ours(err) { // Verify tells of it
			return nil
		}
		return err
	}
	rescued, err := s.rescue(ctx, t, all[1:])
	if err != nil || rescued {
		return err
	}
	rewritten, err := s.rewrite(ctx, t, newest)
	if err != nil {
		return err
	}
	if !rewritten {
		all = all[1:]
	}
	return s.unneeded(ctx, all, false)
}

// unneeded declares generations dead, or has them removed when all of them have been for long enough. Where
// they are the whole of a pack the newest goes last, so that none takes its place.
func (s *sweep) unneeded(ctx context.Context, all []generation, whole bool) error {
	ripe := func(g generation) bool {
		return s.o.Now || g.dead != 0 && g.dead+int64(s.o.Grace) <= s.lease.begun.UnixNano()
	}
	for _, g := range slices.Backward(all) {
		if g.dead == 0 {
			if err := s.declare(ctx, g); err != nil {
				return err
			}
		} else if !ripe(g) {
			s.done.Waiting++
			s.done.Later += g.size
		}
	}
	if whole && slices.ContainsFunc(all, func(g generation) bool { return !ripe(g) }) {
		return nil
	}
	for _, g := range slices.Backward(all) {
		if ripe(g) {
			s.gone = append(s.gone, g)
			s.done.Removed++
			s.done.Freed += g.size
		}
	}
	return nil
}

// declare declares a generation dead, but for one that is of a point that may be on its way.
func (s *sweep) declare(ctx context.Context, g generation) error {
	if !s.o.Now {
		s.done.Later += g.size
		if s.busy(g) {
			s.done.Waiting++
			return nil
		}
		s.done.Declared++
	}
	if s.o.DryRun {
		return nil
	}
	err := s.v.seal(ctx, g.name.Dead(), nil)
	if errors.Is(err, store.ErrExists) { // another prune has declared it
		return nil
	}
	return err
}

// busy reports whether a generation must be left as it is: while somebody writes, and when it was
// written after this prune had begun.
func (s *sweep) busy(g generation) bool {
	return !s.o.Now && (s.done.Writers > 0 || g.written >= s.lease.begun.UnixNano())
}

// remove removes what goes at once.
func (s *sweep) remove(ctx context.Context) error {
	locked, err := s.v.lockEnds(ctx, s.gone, s.lease.begun)
	if err != nil {
		return err
	}
	for _, g := range s.gone {
		if until, ok := locked[g.name.String()]; ok {
			s.stays(g, until)
			continue
		}
		for _, name := range []string{g.name.String(), g.name.Dead()} {
			if err := s.erase(ctx, name); err != nil {
				return err
			}
		}
	}
	for _, name := range s.markers {
		if err := s.erase(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// stays takes a generation that is locked back from what was removed.
func (s *sweep) stays(g generation, until time.Time) {
	d := s.done
	d.Removed, d.Freed = d.Removed-1, d.Freed-g.size
	d.Locked, d.LockedBytes = d.Locked+1, d.LockedBytes+g.size
	if d.LockedUntil == nil || d.LockedUntil.Before(until) {
		d.LockedUntil = &until
	}
}

func (s *sweep) erase(ctx context.Context, name string) error {
	if s.o.DryRun {
		return nil
	}
	return s.v.store.Remove(ctx, name)
}

// leftovers removes what those left who died: leases that ended, objects that got no name, and marks of
// points that were forgotten.
func (s *sweep) leftovers(ctx context.Context) error {
	var old []string
	for _, h := range s.held {
		if _, alien := format.ParseID(strings.TrimPrefix(h.name, format.LeasesPrefix)); alien == nil && !h.alive(s.lease.begun) {
			old = append(old, h.name)
		}
	}
	err := s.v.store.List(ctx, store.TempPrefix, func(i store.Info) error {
		alone := !strings.Contains(strings.TrimPrefix(i.Name, store.TempPrefix), "/")
		if alone && s.lease.begun.Sub(i.Time) > DefaultGrace {
			old = append(old, i.Name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	stale, err := s.v.staleMarks(ctx)
	for _, name := range append(old, stale...) {
		if err == nil {
			err = s.erase(ctx, name)
		}
	}
	return err
}
