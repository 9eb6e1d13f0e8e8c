package lvm

import (
	"context"
	"fmt"

	"tidemark/linux/mounts"
)

// Detachable returns nil when Detach would begin. The error wraps ErrRefused or ErrInUse.
func Detachable(ctx context.Context, origin, snapshot Volume) error {
	all, err := List(ctx, origin.VG)
	if err != nil {
		return err
	}
	if err := fit(origin, snapshot, all); err != nil {
		return err
	}
	if err := unused(origin); err != nil {
		return err
	}
	return unused(snapshot)
}

// fit refuses volumes to which a store cannot be applied without harm.
func fit(origin, snapshot Volume, all []Volume) error {
	name := origin.FullName()
	switch {
	case snapshot.Thin():
		return fmt.Errorf("lvm: %s: %w: a thin snapshot has no store: \"lvconvert --merge %s\" brings it back", snapshot.FullName(), ErrRefused, snapshot.FullName())
	case !snapshot.Snapshot():
		return fmt.Errorf("lvm: %s: %w: it is no snapshot", snapshot.FullName(), ErrRefused)
	case snapshot.VG != origin.VG || snapshot.Origin != origin.Name:
		return fmt.Errorf("lvm: %s: %w: it is a snapshot of %s/%s, not of %s", snapshot.FullName(), ErrRefused, snapshot.VG, snapshot.Origin, name)
	case snapshot.Merging || origin.Merging || snapshot.MergeFailed || origin.MergeFailed:
		return fmt.Errorf("lvm: %s: %w: LVM itself merges %s, or will when %s is next activated", name, ErrRefused, snapshot.FullName(), name)
	case snapshot.Invalid:
		return fmt.Errorf("lvm: %s: %w: it was overflowed, and what it held is lost: \"lvremove %s\"", snapshot.FullName(), ErrRefused, snapshot.FullName())
	case origin.Suspended || snapshot.Suspended:
		return fmt.Errorf("lvm: %s: %w: it is suspended: \"dmsetup resume\" lets it go on", name, ErrRefused)
	case origin.ReadOnly:
		return fmt.Errorf("lvm: %s: %w: it is read-only: \"lvchange --permission rw %s\" has it written to", name, ErrRefused, name)
	}
	for _, other := range all {
		if other.Origin == origin.Name && other.UUID != snapshot.UUID {
			return fmt.Errorf("lvm: %s: %w: %s is a snapshot of it too, and would change with it: remove that first, or use \"lvconvert --merge %s\", which keeps it", name, ErrRefused, other.FullName(), snapshot.FullName())
		}
	}
	return nil
}

// unused refuses a volume that is mounted, open, or part of something, and names what uses it.
func unused(v Volume) error {
	if !v.Active || v.Path == "" {
		return nil
	}
	table, err := mounts.Read()
	if err != nil {
		return fmt.Errorf("lvm: %s: %w", v.FullName(), err)
	}
	use, err := table.UseOf(v.Path)
	if err != nil {
		return fmt.Errorf("lvm: %s: %w", v.FullName(), err)
	}
	switch {
	case use.InUse():
		return fmt.Errorf("lvm: %s: %w: %s", v.FullName(), ErrInUse, use)
	case v.Open:
		return fmt.Errorf("lvm: %s: %w: a program has it open (\"fuser %s\" tells which)", v.FullName(), ErrInUse, v.Path)
	}
	return nil
}
