package vault

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"tidemark/extent"
	format "tidemark/format/vault"
	"tidemark/vault/store"
)

// Copied is what became of a point that was to be copied.
type Copied struct {
	Disk  string
	From  Point
	To    Point // zero where nothing was copied
	There bool  // it was there already
}

// CopyTo copies points to another vault, with other keys and chunks of its own; it reads and
// stores what that has not. A point keeps its id, moment, mark and tags, so one that is there is not
// copied again, and a copy that was cut off goes on where it was. Each is made from the one before
// it that is there. Points that lost something are left out. Each is told of when it is done.
func (v *Vault) CopyTo(ctx context.Context, to *Vault, points []Point, each func(Copied) error) error {
	disks, err := v.Disks(ctx)
	if err != nil {
		return err
	}
	of := map[format.ID][]Point{}
	for _, p := range points {
		of[p.Name.Disk] = append(of[p.Name.Disk], p)
	}
	for id, some := range of {
		d := Disk{ID: id, Disk: format.Disk{Name: "disk-" + id.String()[:8]}} // its object is lost
		if i := slices.IndexFunc(disks, func(d Disk) bool { return d.ID == id }); i >= 0 {
			d = disks[i]
		}
		slices.SortStableFunc(some, func(a, b Point) int { return a.Moment.Compare(b.Moment) })
		if err := v.copyDisk(ctx, to, d, some, each); err != nil {
			return fmt.Errorf("vault: copy disk %s: %w", d.Name, err)
		}
	}
	return nil
}

func (v *Vault) copyDisk(ctx context.Context, to *Vault, d Disk, points []Point, each func(Copied) error) error {
	target, err := to.AddDisk(ctx, d.Disk)
	if err != nil {
		return err
	}
	names, err := to.pointNames(ctx, target.ID)
	if err != nil {
		return err
	}
	lost, err := to.lostPoints(ctx)
	if err != nil {
		return err
	}
	there := map[format.ID]format.PointName{}
	for _, name := range names {
		there[name.ID] = name
	}
	var base *Copied // the point before, where both vaults have it
	for _, p := range points {
		c := Copied{Disk: d.Name, From: p}
		if name, ok := there[p.Name.ID]; ok {
			c.There = true
			c.To, err = to.Point(ctx, name)
		} else if !p.Lost {
			c.To, err = v.copyPoint(ctx, to, target, p, base)
		}
		if err != nil {
			if _, gone := v.Point(ctx, p.Name); errors.Is(gone, store.ErrNotExist) {
				continue // forgotten meanwhile
			}
			return fmt.Errorf("%v: %w", p.Name, err)
		}
		if !p.Lost && !lost[c.To.Name] {
			base = &c
		}
		if err := each(c); err != nil {
			return err
		}
	}
	return nil
}

// copyPoint copies one point: what differs from the base, or all of it.
func (v *Vault) copyPoint(ctx context.Context, to *Vault, d Disk, p Point, base *Copied) (made Point, err error) {
	from := From{Disk: d.ID, Size: p.Size, ID: p.Name.ID}
	whole := extent.Extent{Len: p.Size}
	set := extent.NewSet(whole)
	if base != nil {
		from.Base = &base.To
		if set, err = v.Diff(ctx, base.From, p); err != nil {
			return made, err
		}
		set = set.Clip(whole)
	}
	r := v.Reader(ctx, p)
	data, err := r.Data(whole)
	if err != nil {
		return made, err
	}
	w, err := to.Begin(ctx, from)
	if err != nil {
		return made, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if base != nil {
		for _, e := range set.Subtract(data).Extents() {
			if err := w.Zero(e); err != nil {
				return made, err
			}
		}
	}
	if err := w.Copy(r, set.Intersect(data)); err != nil {
		return made, err
	}
	return w.Commit(p.Point)
}
