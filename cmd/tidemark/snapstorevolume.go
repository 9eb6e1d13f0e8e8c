package main

import (
	"context"
	"errors"

	"tidemark/linux/dm"
	"tidemark/linux/dmsnap"
	"tidemark/linux/lvm"
	"tidemark/track/cow"
)

// volumePair is a volume of LVM and a snapshot of it, by name.
type volumePair struct{ lv, snapshot string }

// find asks LVM for both.
func (p volumePair) find(ctx context.Context) (origin, snapshot lvm.Volume, err error) {
	if origin, err = lvm.Find(ctx, p.lv); err != nil {
		return origin, snapshot, err
	}
	snapshot, err = lvm.Find(ctx, p.snapshot)
	return origin, snapshot, err
}

// look calls do with the store and the origin while they are in use, for reading.
func (p volumePair) look(ctx context.Context, do func(store, origin string) error) error {
	volume, snapshot, err := p.find(ctx)
	if err != nil {
		return err
	}
	if err := lvm.Detachable(ctx, volume, snapshot); err != nil {
		return err
	}
	ctl, err := dm.Open()
	if err != nil {
		return err
	}
	defer ctl.Close()
	origin, store, err := lvm.Layers(ctl, volume, snapshot)
	if err != nil {
		return err
	}
	return do(store, origin)
}

// apply takes both out of use, has do apply the store to the origin, and has LVM activate them
// again. do calls begin before it writes the first byte, and returns nil when all is on the disk.
func (p volumePair) apply(ctx context.Context, do func(store, origin string, begin func() error) error) error {
	volume, snapshot, err := p.find(ctx)
	if err != nil {
		return err
	}
	ctl, err := dm.Open()
	if err != nil {
		return err
	}
	defer ctl.Close()
	d, err := lvm.Detach(ctx, ctl, volume, snapshot)
	if err != nil {
		return err
	}
	err = do(d.Store, d.Origin, func() error { return d.Begin(ctx) })
	return errors.Join(err, d.Attach(err == nil))
}

// volumeClasses are the errors of LVM's volumes and of live snapshots.
func volumeClasses() []class {
	return []class{
		{"half-applied", lvm.ErrHalfDone, exitError, `"lvs -o +tags" shows it, until that command has ended`},
		{"volume-in-use", lvm.ErrInUse, exitRefused, "unmount it, or end what uses it"},
		{"volume-refused", lvm.ErrRefused, exitRefused, ""},
		{"no-volume", lvm.ErrNotFound, exitError, `"lvs" lists them`},
		{"no-lvm", lvm.ErrMissing, exitError, ""},
		{"live-snapshot", dmsnap.ErrLive, exitRefused, ""},
		{"no-live-snapshot", cow.ErrNoSnapshot, exitRefused, `"dmsetup table" lists the snapshots and their stores; "tidemark snapstore list" reads a store that is not in use`},
		{"not-origin", cow.ErrNotOrigin, exitRefused, "name that as the source"},
		{"snapshot-unfit", cow.ErrUnfit, exitRefused, "make another snapshot, or use --tracker bpf"},
	}
}
