// Package thin is the tracker and the view of volumes of dm-thin: a snapshot in the same pool
// is both what stands still while it is read, and the mark from which the pool's metadata tells
// what has changed.
//
// For most uses, ask [Judge] whether a source can be copied so, call [Open] with all sources of
// a run, and use [Group.View] and the trackers of [Group.Tracker] together.
//
// The package owns the snapshots that it makes: their names, the records of them in the state
// folder, and the proof that one is still what it was. The kernel's pools are package
// linux/dmthin's, the metadata is package format/thin's, and volumes of LVM are snapshotted and
// removed by lvm2's own commands (package linux/lvm). It refuses a pool that is nearly full, or
// that does not accept changes. A Group serves one run, and one goroutine at a time.
//
// # One instant
//
// The kernel makes a snapshot when it is sent a message, and wants the origin suspended
// meanwhile: all volumes are suspended side by side (package linux/dmhold), by which the kernel
// freezes the filesystem that lies on each, the messages are sent, and all go on. Filesystems that
// do not lie on a volume itself, but on what is made of it, as an encrypted device, are frozen by
// us before that.
//
// lvm2 suspends a volume by itself, for its own snapshot. Of several volumes the filesystems
// are frozen by us until the last has its snapshot, and the kernel's counters prove that nobody
// has written past them. Linux before 6.8 does not freeze what is frozen already, so that
// lvm2 fails: then several are refused.
//
// # Why no write is lost
//
// As in drivers/md/dm-thin.c and dm-thin-metadata.c of Linux 6.1 to 6.12. A block of a volume
// whose data was given out before the volume was last snapshotted counts as shared: a write to
// it is given a new data block, whose mapping holds the pool's time, and a discard takes the
// mapping away. So each block that was written to or discarded since a snapshot has another
// mapping in the volume than in the snapshot, or none: thin.View.Delta names it.
//
// That holds as long as the snapshot is what it was. A snapshot that was written to has a
// mapping whose time is not older than the snapshot, which Delta tells: such a leaf cannot be
// shared with the volume, unless the volume has come from the snapshot, of which a snapshot was made
// then, or which is the volume (lvconvert --merge). One in which blocks were discarded has fewer
// mappings than the record says. Numbers of devices are used again: the record has the time and the transaction of the
// snapshot's making as well. Whatever does not agree loses the mark.
//
// A pool without a UUID of its own is known by its name: one that is made anew, over the same
// devices and by the same steps, down to the number of blocks in each snapshot, cannot be told
// from the one before. LVM's pools have UUIDs.
package thin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"tidemark/block"
	"tidemark/linux/dm"
	"tidemark/linux/dmthin"
	"tidemark/linux/lvm"
	"tidemark/view"
)

// Kind is the kind of the tracker and of its marks, and of the view.
const Kind = "thin"

var (
	// ErrNotThin says that a source is no thin volume.
	ErrNotThin = errors.New("not a thin volume")
	// ErrUnfit says that no snapshot of a thin volume should be made now.
	ErrUnfit = errors.New("no snapshot of it can be made")
)

// Options say how. StateDir and RunDir are required.
type Options struct {
	StateDir  string // where the records of snapshots are, which outlive reboots
	RunDir    string // gone after a reboot
	Hooks     view.Hooks
	MaxFreeze time.Duration // bounds the time that users of the sources wait; required
	// Note is told what could not be removed, and no more. It must not be nil.
	Note func(format string, args ...any)
}

// Source is a thin volume that is to be copied.
type Source struct {
	*block.Device        // open until the Group is closed
	Owner         string // under whom its mark is kept
}

// volume is a source, and its snapshot of this run.
type volume struct {
	Source
	pool   dmthin.Pool
	thin   dmthin.Volume
	lv     *lvm.Volume // nil: of a plain pool
	newest *snapshot
}

// snapshot is one that this run made.
type snapshot struct {
	record record
	lv     *lvm.Volume // nil: of a plain pool
}

// Group is the thin volumes of one run.
type Group struct {
	o       Options
	ctl     *dm.Control
	volumes []*volume
	made    []*snapshot
	kept    map[string]bool // generations whose marks an owner keeps
}

// Judge returns nil when a source can be copied by its pool's snapshots. The error wraps
// ErrNotThin or ErrUnfit.
func Judge(src *block.Device) error {
	if !src.IsMapped() {
		return fmt.Errorf("thin: %s: %w", src.Path(), ErrNotThin)
	}
	ctl, err := dm.Open()
	if err != nil {
		return fmt.Errorf("thin: %w", err)
	}
	defer ctl.Close()
	_, err = find(ctl, src)
	return err
}

// find finds out what a source is, and whether its pool takes a snapshot now.
func find(ctl *dm.Control, src *block.Device) (*volume, error) {
	v := &volume{Source: Source{Device: src}}
	if !src.IsMapped() {
		return nil, fmt.Errorf("thin: %s: %w", src.Path(), ErrNotThin)
	}
	info, err := ctl.Find(src.Identity().Dev().Major, src.Identity().Dev().Minor)
	if errors.Is(err, dm.ErrNotFound) {
		return nil, fmt.Errorf("thin: %s: %w", src.Path(), ErrNotThin)
	}
	if err != nil {
		return nil, err
	}
	pool, found, err := dmthin.Find(ctl, info.Path())
	if errors.Is(err, dmthin.ErrNotPool) || err == nil && found == nil {
		return nil, fmt.Errorf("thin: %s: %w", src.Path(), ErrNotThin)
	}
	if err != nil {
		return nil, err
	}
	v.pool, v.thin = pool, *found
	return v, v.roomy(ctl)
}

// full is the part of a pool, in percent, from which on no snapshot is made: what is written to
// a volume that has one takes new room.
const full = 95

// roomy refuses a pool that cannot take a snapshot, or should not.
func (v *volume) roomy(ctl *dm.Control) error {
	st, err := v.pool.Status(ctl)
	unfit := func(format string, args ...any) error {
		return fmt.Errorf("thin: %s: %w: its pool %s %s", v.Path(), ErrUnfit, v.pool.Name, fmt.Sprintf(format, args...))
	}
	switch {
	case errors.Is(err, dmthin.ErrFailed):
		return fmt.Errorf("thin: %s: %w: %w", v.Path(), ErrUnfit, err)
	case err != nil:
		return err
	case st.Mode != "rw":
		return unfit("is in mode %q", st.Mode)
	case st.NeedsCheck:
		return unfit("needs to be checked")
	case st.UsedData*100 >= st.TotalData*full:
		return unfit("has %d of its %d data blocks in use", st.UsedData, st.TotalData)
	case st.UsedMetadata*100 >= st.TotalMetadata*full:
		return unfit("has %d of its %d metadata blocks in use", st.UsedMetadata, st.TotalMetadata)
	}
	return nil
}

// Open gets ready to copy sources by snapshots. What runs that were cut off have left for the same
// owners goes when the next one keeps its marks. The error wraps ErrNotThin, ErrUnfit, or
// lvm.ErrMissing.
func Open(ctx context.Context, sources []Source, o Options) (_ *Group, err error) {
	g := &Group{o: o, kept: map[string]bool{}}
	if g.ctl, err = dm.Open(); err != nil {
		return nil, fmt.Errorf("thin: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.ctl.Close())
		}
	}()
	for _, s := range sources {
		v, err := find(g.ctl, s.Device)
		if err != nil {
			return nil, err
		}
		v.Source = s
		if strings.HasPrefix(v.thin.UUID, "LVM-") {
			lv, err := lvm.Find(ctx, v.thin.Path())
			if err != nil {
				return nil, err
			}
			v.lv = &lv
		}
		g.volumes = append(g.volumes, v)
	}
	if _, err := g.apart(); err != nil {
		return nil, err
	}
	return g, nil
}

// Close removes the snapshots of this run that nobody keeps.
func (g *Group) Close() error {
	var errs []error
	for _, s := range g.made {
		if !g.kept[s.record.Generation] {
			errs = append(errs, g.drop(context.Background(), s.record))
		}
	}
	return errors.Join(append(errs, g.ctl.Close())...)
}

// Forget removes all snapshots that are kept of a volume, so that the marks of all copies of it are
// lost, and returns how many there were. A run that reads one has to end first.
func Forget(ctx context.Context, src *block.Device, o Options) (removed int, err error) {
	if !src.IsMapped() {
		return 0, fmt.Errorf("thin: %s: %w", src.Path(), ErrNotThin)
	}
	return remove(ctx, o, "", func(ctl *dm.Control) (func(record) bool, error) {
		v, err := find(ctl, src)
		if err != nil && !errors.Is(err, ErrUnfit) {
			return nil, err
		}
		return func(r record) bool { return r.Pool == poolID(v.pool) && r.Volume == v.thin.ID }, nil
	})
}

// Release removes all snapshots that are kept for an owner, whose copy counts from something else.
func Release(ctx context.Context, owner string, o Options) error {
	_, err := remove(ctx, o, owner, func(*dm.Control) (func(record) bool, error) {
		return func(record) bool { return true }, nil
	})
	return err
}

// remove removes snapshots of an owner, or of all, that are wanted.
func remove(ctx context.Context, o Options, owner string, choose func(*dm.Control) (func(record) bool, error)) (removed int, err error) {
	list, err := records(o.StateDir).of(owner)
	if len(list) == 0 {
		return 0, err
	}
	ctl, derr := dm.Open()
	if derr != nil {
		return 0, fmt.Errorf("thin: %w", derr)
	}
	g := &Group{o: o, ctl: ctl}
	defer func() { err = errors.Join(err, ctl.Close()) }()
	wanted, cerr := choose(ctl)
	if cerr != nil {
		return 0, cerr
	}
	for _, r := range list {
		if !wanted(r) {
			continue
		}
		if derr := g.drop(ctx, r); derr != nil {
			err = errors.Join(err, derr)
			continue
		}
		removed++
	}
	return removed, err
}
