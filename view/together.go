package view

import (
	"context"
	"errors"

	"tidemark/block"
	"tidemark/linux/sysfs"
)

// lvmFolder is where lvm2 writes archives and backups of what it changes.
const lvmFolder = "/etc/lvm"

// Together calls do while every filesystem on the sources is frozen, or, where none is mounted,
// while nobody writes to them, and proves it. It is for snapshots that others make of one source after
// the other: they are of one instant then. do writes to no file; frozen says that
// filesystems are. The error wraps do's, or is one of Freeze's or Offline's.
func Together(ctx context.Context, o Options, do func(ctx context.Context, frozen bool) error) (Report, error) {
	v, err := Freeze(o).Take(ctx, func(ctx context.Context) error { return do(ctx, true) })
	if errors.Is(err, ErrNothingToFreeze) {
		v, err = Offline(o).Take(ctx, func(ctx context.Context) error { return do(ctx, false) })
	}
	if err != nil {
		return Report{}, err
	}
	return v.Close()
}

// LVMTogether returns why lvm2 could not make snapshots of the sources within Together, "" when it
// could.
func LVMTogether(sources []*block.Device) (why string, err error) {
	covered, err := Covered(sources, lvmFolder)
	if err != nil || len(covered) > 0 {
		return "lvm2 writes to " + lvmFolder + ", which would be frozen", err
	}
	direct, _, err := Through(sources)
	if err != nil || !direct {
		return "", err
	}
	old, err := sysfs.KernelBefore(6, 8)
	if old {
		why = "Linux before 6.8 does not let lvm2 make a snapshot of a volume whose filesystem is frozen"
	}
	return why, err
}
