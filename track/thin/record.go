package thin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"tidemark/format/thin"
	"tidemark/linux/atomicfile"
	"tidemark/linux/dm"
	"tidemark/linux/dmthin"
	"tidemark/linux/lvm"
	"tidemark/track"
	"tidemark/track/history"
)

// A record is what is known of a snapshot of ours. It is written before the snapshot is made, and
// removed after the snapshot is gone.
type record struct {
	Version    int    `json:"version"`
	Generation string `json:"generation"` // at random; the mark has it
	Owner      string `json:"owner"`      // of the mark
	Pool       string `json:"pool"`       // its device-mapper UUID, or its name
	PoolName   string `json:"pool_name"`
	Volume     uint32 `json:"volume"`            // the origin's number in the pool
	LV         string `json:"lv,omitempty"`      // "VG/LV" of the snapshot; "": of a plain pool
	LVUUID     string `json:"lv_uuid,omitempty"` // "" until it is made
	// Of the snapshot, in its pool. Until Made is set there may be none, or one of which no more
	// is known than the number and the time of its making.
	Made        bool   `json:"made"`
	ID          uint32 `json:"id"`
	Created     uint32 `json:"created"`
	Transaction uint64 `json:"transaction"`
	Mapped      uint64 `json:"mapped"`
}

const recordVersion = 1

// name is what the snapshot's device, or logical volume, is called.
func (r record) name() string { return "tidemark-" + r.Generation }

// mark is the mark of the moment of the snapshot.
func (r record) mark() track.Mark {
	return history.Moment{Generation: r.Generation, Epoch: 1}.Mark(Kind)
}

// is reports whether a device of the pool is the snapshot.
func (r record) is(d thin.Device) bool {
	if !r.Made {
		return d.ID == r.ID && d.Created >= r.Created
	}
	return d.ID == r.ID && d.Created == r.Created && d.Transaction == r.Transaction
}

// untouched returns nil when the snapshot has lost no block and nothing was made of it, or the reason
// why its mark is lost. The kernel gives a snapshot the time of its making as that of its own last
// snapshot, too.
func (r record) untouched(d thin.Device) error {
	switch {
	case !r.Made || !r.is(d):
		return track.Lost("its snapshot is gone: device %d of the pool %s is another one", r.ID, r.PoolName)
	case d.Snapped != r.Created:
		return track.Lost("a snapshot was made of its snapshot, device %d of the pool %s, so that it may have become a volume", r.ID, r.PoolName)
	case d.Mapped != r.Mapped:
		return track.Lost("its snapshot, device %d of the pool %s, was changed: it has %d blocks, and had %d", r.ID, r.PoolName, d.Mapped, r.Mapped)
	}
	return nil
}

// records are the records in a state folder.
type records string

func (dir records) folder() string { return filepath.Join(string(dir), "thin", "snapshots") }

func (dir records) path(generation string) string {
	return filepath.Join(dir.folder(), generation+".json")
}

func (dir records) write(r record) error {
	r.Version = recordVersion
	err := atomicfile.MkdirAll(dir.folder(), 0o755)
	if err == nil {
		err = atomicfile.WriteJSON(dir.path(r.Generation), atomicfile.Options{Durable: true}, r)
	}
	if err != nil {
		return fmt.Errorf("thin: %w", err)
	}
	return nil
}

func (dir records) read(generation string) (r record, err error) {
	if !history.IsID(generation) {
		return r, fmt.Errorf("thin: %q: %w", generation, track.ErrBadMark)
	}
	err = atomicfile.ReadJSON(dir.path(generation), &r)
	if err == nil && (r.Version != recordVersion || r.Generation != generation) {
		err = fmt.Errorf("%w: version %d, generation %q", atomicfile.ErrDamaged, r.Version, r.Generation)
	}
	if err != nil {
		err = fmt.Errorf("thin: %s: %w", dir.path(generation), err)
	}
	return r, err
}

// of returns the records of an owner; of all when that is "". Beside an error there are those that
// can be read.
func (dir records) of(owner string) (list []record, err error) {
	names, err := os.ReadDir(dir.folder())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, n := range names {
		generation, ok := strings.CutSuffix(n.Name(), ".json")
		if !ok || !history.IsID(generation) {
			continue
		}
		r, rerr := dir.read(generation)
		if errors.Is(rerr, fs.ErrNotExist) {
			continue // another run has removed it
		}
		if err = errors.Join(err, rerr); rerr == nil && (owner == "" || r.Owner == owner) {
			list = append(list, r)
		}
	}
	return list, err
}

func (dir records) remove(r record) error {
	err := os.Remove(dir.path(r.Generation))
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("thin: %w", err)
}

// poolID is what a pool is known by.
func poolID(p dmthin.Pool) string {
	if p.UUID != "" {
		return p.UUID
	}
	return p.Name
}

// drop removes a snapshot, when there is one and it is ours still, and then its record. A snapshot of
// a pool that is not in use stays, and is no error.
func (g *Group) drop(ctx context.Context, r record) error {
	pool, err := findPool(g.ctl, r)
	if errors.Is(err, dmthin.ErrNotPool) {
		return nil
	}
	if err == nil && r.LV != "" {
		err = dropLV(ctx, r)
	} else if err == nil {
		err = g.dropPlain(ctx, pool, r)
	}
	if err != nil {
		return fmt.Errorf("thin: remove the snapshot %s of the pool %s: %w", r.name(), r.PoolName, err)
	}
	return g.records().remove(r)
}

// findPool finds the pool of a record, whatever its name is by now.
func findPool(ctl *dm.Control, r record) (dmthin.Pool, error) {
	all, err := ctl.List()
	if err != nil {
		return dmthin.Pool{}, err
	}
	for _, e := range all {
		if e.UUID != r.Pool && (e.UUID != "" || e.Name != r.Pool) {
			continue
		}
		info, err := ctl.Info(e.Name)
		if err != nil {
			return dmthin.Pool{}, err
		}
		pool, _, err := dmthin.Find(ctl, info.Path())
		return pool, err
	}
	return dmthin.Pool{}, fmt.Errorf("thin: %s: %w", r.PoolName, dmthin.ErrNotPool)
}

// dropLV removes a volume of LVM, unless somebody has made another one of it, which would go with
// it.
func dropLV(ctx context.Context, r record) error {
	vg, _, _ := strings.Cut(r.LV, "/")
	list, err := lvm.List(ctx, vg)
	if errors.Is(err, lvm.ErrNotFound) || err == nil && r.LVUUID != "" && !slices.ContainsFunc(list, func(v lvm.Volume) bool { return v.UUID == r.LVUUID }) {
		list, err = lvm.List(ctx, "") // the group was renamed
	}
	if err != nil {
		return err
	}
	for _, lv := range list {
		if lv.UUID != r.LVUUID && (r.LVUUID != "" || lv.Name != r.name()) || !slices.Contains(lv.Tags, lvm.Tag) {
			continue
		}
		if lv.Merging || slices.ContainsFunc(lv.Role, func(role string) bool { return strings.HasSuffix(role, "origin") }) {
			return nil // its owner is somebody else by now
		}
		return lvm.Remove(ctx, lv)
	}
	return nil
}

// dropPlain deletes a device of a pool, unless it is no longer what we made: a volume of somebody's
// that began as our snapshot.
func (g *Group) dropPlain(ctx context.Context, pool dmthin.Pool, r record) error {
	err := g.ctl.Remove(r.name(), dm.RemoveOptions{Patience: removePatience})
	if err != nil && !errors.Is(err, dm.ErrNotFound) {
		return err
	}
	ours := false
	err = g.metadata(ctx, pool, func(m *dmthin.Held) error {
		d, err := m.View.Device(r.ID)
		if errors.Is(err, thin.ErrNoDevice) {
			return nil
		}
		ours = err == nil && r.is(d) && (!r.Made || r.untouched(d) == nil)
		return err
	})
	if err != nil || !ours {
		return err
	}
	_, err = g.ctl.Message(pool.Name, 0, fmt.Sprintf("delete %d", r.ID))
	return err
}
