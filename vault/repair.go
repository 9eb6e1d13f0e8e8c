package vault

import (
	"context"
	"errors"
	"fmt"
	"strings"

	format "tidemark/format/vault"
	"tidemark/vault/store"
)

// RepairOptions say how a vault is repaired. The zero value will do for most.
type RepairOptions struct {
	// Data reads all packs, too, as VerifyOptions.Data does.
	Data bool
	// DryRun changes nothing, and tells what would be done.
	DryRun bool
	// Damage gets each thing that is wrong.
	Damage func(Damage)
}

// Repaired is what was found and done, or would be.
type Repaired struct {
	Verified
	Aside     int `json:"aside"`        // objects that were set aside
	Rewritten int `json:"rewritten"`    // packs of which what is sound is kept
	Locked    int `json:"locked"`       // of Aside, that stay where they are, too: nobody can remove them yet
	Lost      int `json:"points_lost"`  // points that cannot be read whole; they are marked
	Whole     int `json:"points_whole"` // points that were marked, and can be read whole again
}

// Repair makes a damaged vault one that can be used. The index is made anew. What is damaged is set
// aside, below aside/: a pack as a whole, or, where its table is sound, without the segments that
// are not. So no new point refers to it. Points that lost something are marked, and stay: what they
// still have can be read. The next backup of such a disk reads the source as if there had
// been none, and stores what the vault has not. Nobody else may be at work: the error
// wraps ErrBusy. What a later version wrote is not touched: it wraps format.ErrNewer.
func (v *Vault) Repair(ctx context.Context, o RepairOptions) (r Repaired, err error) {
	l, err := v.takeLease(ctx, repair)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, l.end()) }()
	if !o.DryRun {
		if err := v.index.reset(); err != nil {
			return r, err
		}
	}
	v.forgetPages()
	m := mender{o: o, done: &r, broken: map[string]bool{}, damaged: map[string]bool{}}
	m.c = v.verifier(VerifyOptions{Data: o.Data, Damage: m.found})
	if err := m.c.run(ctx); err != nil {
		return r, err
	}
	r.Verified = m.c.sum
	if m.c.newer != nil {
		return r, fmt.Errorf("vault: %v: nothing was changed: %w", v.store, m.c.newer)
	}
	if err := m.packs(ctx); err != nil {
		return r, err
	}
	for name := range m.damaged {
		if err := m.aside(ctx, name); err != nil {
			return r, err
		}
	}
	err = m.marks(ctx)
	v.forgetPages()
	return r, err
}

// mender repairs what a verifier found.
type mender struct {
	c       *verifier
	o       RepairOptions
	done    *Repaired
	broken  map[string]bool // names of points that lost something
	damaged map[string]bool // names of manifests, and of objects of disks
}

func (m *mender) found(d Damage) {
	switch {
	case d.Point != "" && d.Point != d.Object:
		m.broken[d.Point] = true
	case strings.HasPrefix(d.Object, format.PointsPrefix) || strings.HasPrefix(d.Object, format.DisksPrefix):
		m.damaged[d.Object] = true
	}
	if m.o.Damage != nil {
		m.o.Damage(d)
	}
}

// packs sets aside those whose table cannot be read, and keeps of the others what is sound.
func (m *mender) packs(ctx context.Context) error {
	for _, k := range m.c.tableless {
		if err := m.aside(ctx, k.name.String()); err != nil {
			return err
		}
	}
	spoilt := map[format.ID]bool{}
	for ref := range m.c.lost {
		spoilt[ref.Pack] = true
	}
	for id := range spoilt {
		if err := m.salvage(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// salvage writes a generation of a pack without what cannot be read, and sets the old one aside.
func (m *mender) salvage(ctx context.Context, id format.ID) error {
	v := m.c.v
	t, err := v.table(ctx, id)
	if err != nil {
		return err
	}
	p := v.keys.NextGeneration(format.PackName{ID: id, Generation: t.name.Generation + 1})
	for _, s := range t.Segments {
		if m.c.lost[format.Ref{Pack: id, Segment: s.Number}] != "" || m.o.DryRun {
			continue
		}
		if err := v.sound(ctx, t, []format.Segment{s}, p.Keep); err != nil && !ours(err) {
			return err
		}
	}
	if !p.Empty() {
		if err := v.putPack(ctx, p); err != nil {
			return err
		}
	}
	m.done.Rewritten++
	return m.aside(ctx, t.name.String())
}

// aside takes an object out of the way. It is kept, for who wants to look at it.
func (m *mender) aside(ctx context.Context, name string) error {
	m.done.Aside++
	if m.o.DryRun {
		return nil
	}
	s := m.c.v.store
	b, err := s.Get(ctx, name, 0, format.MaxPack+1, nil)
	if errors.Is(err, store.ErrUnreadable) {
		b, err = m.c.v.readable(ctx, name)
	}
	if err == nil {
		err = s.Put(ctx, format.AsidePrefix+name, b)
	}
	if err != nil && !errors.Is(err, store.ErrExists) && !errors.Is(err, store.ErrNotExist) {
		return err
	}
	if err = s.Remove(ctx, name); errors.Is(err, store.ErrLocked) { // nothing new refers to it
		m.done.Locked++
		return nil
	}
	return err
}

// marks marks the points that lost something, and takes the marks of others away.
func (m *mender) marks(ctx context.Context) error {
	v := m.c.v
	marked, err := v.lostPoints(ctx)
	if err != nil {
		return err
	}
	for name := range m.broken {
		point, err := format.ParsePointName(name)
		if err != nil {
			return err
		}
		m.done.Lost++
		if !marked[point] && !m.o.DryRun {
			if err := v.seal(ctx, point.Lost(), nil); err != nil {
				return err
			}
		}
		delete(marked, point)
	}
	for point := range marked {
		m.done.Whole++
		if !m.o.DryRun {
			if err := v.store.Remove(ctx, point.Lost()); err != nil {
				return err
			}
		}
	}
	return nil
}
