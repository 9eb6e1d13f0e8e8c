package main

import (
	"context"
	"errors"

	"tidemark/linux/dm"
	"tidemark/linux/lvm"
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
