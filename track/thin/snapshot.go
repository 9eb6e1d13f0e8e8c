package thin

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"tidemark/block"
	"tidemark/format/thin"
	"tidemark/linux/dm"
	"tidemark/linux/dmhold"
	"tidemark/linux/dmthin"
	"tidemark/linux/lvm"
	"tidemark/track/history"
	"tidemark/view"
)

const (
	// removePatience is how long a device is tried to be removed that udev may have open.
	removePatience = 10 * time.Second
	// metadataPatience is how long another run may hold the metadata snapshot of a pool.
	metadataPatience = 2 * time.Minute
	metadataPause    = 50 * time.Millisecond
	// The numbers of devices in a pool have 24 bits. Ours are of the upper half, at random: who
	// makes devices in a pool counts up.
	minID, allIDs = 1 << 23, 1 << 24
)

func (g *Group) records() records { return records(g.o.StateDir) }

// metadata calls use with the metadata of a pool as it is now, and releases it. A pool has one
// metadata snapshot: another run that holds it is waited for.
func (g *Group) metadata(ctx context.Context, pool dmthin.Pool, use func(*dmthin.Held) error) error {
	began := time.Now()
	for {
		m, err := pool.Hold(g.ctl, dmthin.Options{RunDir: g.o.RunDir, StateDir: g.o.StateDir})
		if err == nil {
			err = use(m)
			if err == nil {
				err = m.Recheck()
			}
			return errors.Join(err, m.Close())
		}
		if !errors.Is(err, dmthin.ErrHeld) || time.Since(began) > metadataPatience {
			return err
		}
		select {
		case <-time.After(metadataPause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// byLVM reports whether one of the volumes is LVM's.
func (g *Group) byLVM() bool {
	return slices.ContainsFunc(g.volumes, func(v *volume) bool { return v.lv != nil })
}

// apart reports whether all filesystems on the volumes have to be frozen before the volumes are
// suspended: those that do not lie on a volume itself, which the kernel leaves alone then, and all
// when lvm2 suspends one of several volumes, one after the other.
func (g *Group) apart() (bool, error) {
	var all []*block.Device
	for _, v := range g.volumes {
		all = append(all, v.Device)
	}
	_, others, err := view.Through(all)
	if err != nil {
		return false, err
	}
	apart := others || g.byLVM() && len(g.volumes) > 1
	if apart && g.byLVM() {
		why, err := view.LVMTogether(all)
		if why != "" && err == nil {
			err = fmt.Errorf("thin: %w: several volumes of LVM with filesystems on them: %s", ErrUnfit, why)
		}
		return apart, err
	}
	return apart, nil
}

// lock keeps other runs from making snapshots in the same pools: they would choose the same numbers.
func (g *Group) lock(ctx context.Context) (unlock func(), err error) {
	var unlocks []func()
	unlock = func() {
		for _, u := range unlocks {
			u()
		}
	}
	var pools []string
	for _, v := range g.volumes {
		pools = append(pools, strings.ReplaceAll(v.pool.Name, "/", "_"))
	}
	slices.Sort(pools)
	if err := os.MkdirAll(filepath.Join(g.o.RunDir, "thin"), 0o755); err != nil {
		return nil, fmt.Errorf("thin: %w", err)
	}
	for _, name := range slices.Compact(pools) {
		u, err := history.Lock(ctx, filepath.Join(g.o.RunDir, "thin", name+".snapshots.lock"))
		if err != nil {
			unlock()
			return nil, err
		}
		unlocks = append(unlocks, u)
	}
	return unlock, nil
}

// prepareAll writes the records of snapshots of all volumes that are about to be made.
func (g *Group) prepareAll(ctx context.Context) error {
	for _, v := range g.volumes {
		if err := g.prepare(ctx, v); err != nil {
			return err
		}
	}
	return nil
}

// snapshot makes a snapshot of every volume, of one instant; frozen says that all filesystems on
// them are frozen: no file is written. It returns how long the volumes stood still.
func (g *Group) snapshot(ctx context.Context, frozen bool) (stood time.Duration, err error) {
	plan := dmhold.Plan{Limit: g.o.MaxFreeze}
	for _, v := range g.volumes {
		if v.lv == nil {
			plan.Devices = append(plan.Devices, dmhold.Device{Name: v.thin.Name, Dev: v.thin.Dev(), NoLockFS: frozen})
			text := fmt.Sprintf("create_snap %d %d", v.newest.record.ID, v.thin.ID)
			plan.Messages = append(plan.Messages, dmhold.Message{Device: v.pool.Name, Text: text})
		}
	}
	if len(plan.Messages) > 0 {
		stood, err = dmhold.Hold(ctx, plan, nil)
	}
	if err == nil && g.byLVM() { // lvm2 suspends and resumes its own
		began := time.Now()
		err = g.lvcreate(ctx)
		stood += time.Since(began)
	}
	if err != nil {
		err = fmt.Errorf("thin: %w", err)
	}
	return stood, err
}

// prepare writes the record of a snapshot that is about to be made of a volume, behind those of
// this run that are of the same instant.
func (g *Group) prepare(ctx context.Context, v *volume) error {
	id, err := history.NewID()
	if err != nil {
		return err
	}
	s := &snapshot{record: record{Generation: id, Owner: v.Owner, Pool: poolID(v.pool), PoolName: v.pool.Name, Volume: v.thin.ID}}
	if v.lv != nil {
		s.record.LV = v.lv.VG + "/" + s.record.name()
	} else if err := g.choose(ctx, v.pool, &s.record); err != nil {
		return err
	}
	v.newest, g.made = s, append(g.made, s)
	return g.records().write(s.record)
}

// choose gives the snapshot a number that no device of the pool has, and foretells the least time
// of its making: the kernel counts it up with every snapshot.
func (g *Group) choose(ctx context.Context, pool dmthin.Pool, r *record) error {
	taken, before := map[uint32]bool{}, uint32(0)
	for _, o := range g.made {
		if o.record.Pool == r.Pool {
			taken[o.record.ID] = true
			before++
		}
	}
	err := g.metadata(ctx, pool, func(m *dmthin.Held) error {
		list, err := m.Devices()
		for _, d := range list {
			taken[d.ID] = true
		}
		r.Created = m.Superblock().Time + before + 1
		return err
	})
	for r.ID = 0; r.ID == 0 || taken[r.ID]; {
		r.ID = minID + rand.Uint32N(allIDs-minID)
	}
	return err
}

// lvcreate has lvm2 make the snapshots of its volumes.
func (g *Group) lvcreate(ctx context.Context) error {
	for _, v := range g.volumes {
		if v.lv == nil {
			continue
		}
		lv, err := lvm.CreateThinSnapshot(ctx, *v.lv, v.newest.record.name())
		if err != nil {
			return err
		}
		v.newest.lv = &lv
		v.newest.record.LVUUID, v.newest.record.ID = lv.UUID, lv.ThinID
	}
	return nil
}

// complete notes what the pools' metadata has of snapshots that were made.
func (g *Group) complete(ctx context.Context) error {
	for _, v := range g.volumes {
		r := &v.newest.record
		err := g.metadata(ctx, v.pool, func(m *dmthin.Held) error {
			d, err := m.View.Device(r.ID)
			r.Made, r.Created, r.Transaction, r.Mapped = true, d.Created, d.Transaction, d.Mapped
			return err
		})
		if err == nil {
			err = g.records().write(*r)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// activate makes the device of a snapshot, for reading, and returns its path.
func (g *Group) activate(v *volume) (path string, err error) {
	if v.newest.lv != nil {
		return v.newest.lv.Path, nil
	}
	name := v.newest.record.name()
	if _, err := g.ctl.Create(name, "TIDEMARK-thin-"+v.newest.record.Generation); err != nil {
		return "", err
	}
	_, err = g.ctl.Load(name, v.thin.Table(v.pool, v.newest.record.ID), dm.LoadOptions{ReadOnly: true})
	var info dm.Info
	if err == nil {
		info, err = g.ctl.ResumeHidden(name)
	}
	if err != nil {
		return "", errors.Join(err, g.ctl.Remove(name, dm.RemoveOptions{Patience: removePatience}))
	}
	return info.Path(), nil
}

// deactivate takes the device of a snapshot away; the snapshot stays.
func (g *Group) deactivate(ctx context.Context, v *volume) error {
	if v.newest.lv != nil {
		return lvm.Deactivate(ctx, *v.newest.lv)
	}
	return g.ctl.Remove(v.newest.record.name(), dm.RemoveOptions{Patience: removePatience})
}

// mapped calls each for the runs of blocks that a snapshot maps.
func (g *Group) mapped(ctx context.Context, v *volume, each func(thin.Mapping) error) error {
	return g.metadata(ctx, v.pool, func(m *dmthin.Held) error {
		d, err := m.View.Device(v.newest.record.ID)
		if err == nil {
			err = v.newest.record.untouched(d)
		}
		if err != nil {
			return err
		}
		return m.Mappings(d.Root, each)
	})
}
