package vault

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	format "tidemark/format/vault"
	"tidemark/vault/store"
)

// Point is a point of a disk: its manifest, and where that lies.
type Point struct {
	Name format.PointName
	format.Point
	// Lost tells that Repair found that it cannot be read whole. Points and Newest look for that.
	Lost bool
}

// Disk is a disk that the vault has points of, or will have.
type Disk struct {
	ID format.ID
	format.Disk
}

// Disks lists the disks, by name.
func (v *Vault) Disks(ctx context.Context) (all []Disk, err error) {
	var ids []format.ID
	err = v.store.List(ctx, format.DisksPrefix, func(i store.Info) error {
		if id, alien := format.ParseID(strings.TrimPrefix(i.Name, format.DisksPrefix)); alien == nil {
			ids = append(ids, id)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		content, err := v.unseal(ctx, format.DiskName(id))
		if err != nil {
			return nil, err
		}
		d, err := format.ParseDisk(content)
		if err != nil {
			return nil, fmt.Errorf("%v: %w", id, err)
		}
		all = append(all, Disk{id, d})
	}
	slices.SortFunc(all, func(a, b Disk) int { return cmp.Or(cmp.Compare(a.Name, b.Name), slices.Compare(a.ID[:], b.ID[:])) })
	return all, nil
}

// AddDisk returns the disk of that name, and makes it when there is none.
func (v *Vault) AddDisk(ctx context.Context, d format.Disk) (Disk, error) {
	all, err := v.Disks(ctx)
	if err != nil {
		return Disk{}, err
	}
	if i := slices.IndexFunc(all, func(have Disk) bool { return have.Name == d.Name }); i >= 0 {
		return all[i], nil
	}
	content, err := d.Encode()
	if err != nil {
		return Disk{}, err
	}
	made := Disk{v.keys.DiskID(d.Name), d} // two that make it at once make the same object
	err = v.seal(ctx, format.DiskName(made.ID), content)
	if !errors.Is(err, store.ErrExists) {
		return made, err
	}
	if content, err = v.unseal(ctx, format.DiskName(made.ID)); err == nil {
		made.Disk, err = format.ParseDisk(content)
	}
	return made, err
}

// pointNames lists where the points of a disk lie, the oldest first; with no disk those of all.
func (v *Vault) pointNames(ctx context.Context, disk format.ID) (all []format.PointName, err error) {
	prefix := format.PointsPrefix
	if !disk.IsZero() {
		prefix += disk.String() + "/"
	}
	err = v.store.List(ctx, prefix, func(i store.Info) error {
		if name, alien := format.ParsePointName(i.Name); alien == nil {
			all = append(all, name)
		}
		return nil
	})
	slices.SortFunc(all, func(a, b format.PointName) int {
		return cmp.Or(a.Time.Compare(b.Time), strings.Compare(a.String(), b.String()))
	})
	return all, err
}

// Points lists the points of a disk, the oldest first; with the zero id those of all disks. A
// point that vanishes meanwhile is left out.
func (v *Vault) Points(ctx context.Context, disk format.ID) ([]Point, error) {
	names, err := v.pointNames(ctx, disk)
	if err != nil {
		return nil, err
	}
	found := make([]*Point, len(names))
	err = atOnce(ctx, len(names), func(ctx context.Context, i int) error {
		p, err := v.Point(ctx, names[i])
		if errors.Is(err, store.ErrNotExist) {
			return nil
		}
		found[i] = &p
		return err
	})
	if err != nil {
		return nil, err
	}
	var all []Point
	for _, p := range found {
		if p != nil {
			all = append(all, *p)
		}
	}
	slices.SortStableFunc(all, func(a, b Point) int { return a.Moment.Compare(b.Moment) })
	return all, v.markLost(ctx, all)
}

// Newest returns the point of a disk that was written last, by the clock of the store: that of the
// machine may have been a year ahead. It returns nil where there is none.
func (v *Vault) Newest(ctx context.Context, disk format.ID) (*Point, error) {
	var last []format.PointName // several where that clock is coarse
	var when time.Time
	err := v.store.List(ctx, format.PointsPrefix+disk.String()+"/", func(i store.Info) error {
		name, alien := format.ParsePointName(i.Name)
		if alien != nil || i.Time.Before(when) {
			return nil
		}
		if i.Time.After(when) {
			last, when = last[:0], i.Time
		}
		last = append(last, name)
		return nil
	})
	if err != nil {
		return nil, err
	}
	var all []Point
	parents := map[string]bool{}
	for _, name := range last {
		p, err := v.Point(ctx, name)
		if errors.Is(err, store.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		parents[p.Parent] = true
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b Point) int {
		return cmp.Or(a.Moment.Compare(b.Moment), strings.Compare(a.Name.String(), b.Name.String()))
	})
	if err := v.markLost(ctx, all); err != nil {
		return nil, err
	}
	for _, p := range slices.Backward(all) { // one that no other was made from
		if !parents[p.Name.String()] {
			return &p, nil
		}
	}
	return nil, nil
}

// Point reads the manifest of a point.
func (v *Vault) Point(ctx context.Context, name format.PointName) (Point, error) {
	content, err := v.unseal(ctx, name.String())
	if err != nil {
		return Point{}, err
	}
	p, err := format.ParsePoint(content)
	if err != nil {
		return Point{}, fmt.Errorf("%v: %w", name, err)
	}
	return Point{Name: name, Point: p}, nil
}

// Forget removes a point. What only it needs is removed by Prune. The error of one that is locked is a
// *store.LockedError.
func (v *Vault) Forget(ctx context.Context, name format.PointName) error {
	return v.store.Remove(ctx, name.String())
}
