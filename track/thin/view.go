package thin

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/format/thin"
	"tidemark/view"
)

// View returns the provider of the views of all sources, of which the trackers' marks are.
func (g *Group) View() view.Provider { return provider{g} }

type provider struct{ *Group }

func (provider) Kind() string { return Kind }

// Traits says that snapshots are read, while users go on.
func (provider) Traits() view.Traits { return view.Traits{Apart: true} }

func (p provider) sources() (list []*block.Device) {
	for _, v := range p.volumes {
		list = append(list, v.Device)
	}
	return list
}

func (p provider) freezing() view.Options {
	return view.Options{Sources: p.sources(), MaxFreeze: p.o.MaxFreeze}
}

// Flush has the users of the sources write out what they hold, so that what follows is short.
func (p provider) Flush(ctx context.Context) error { return view.Freeze(p.freezing()).Flush(ctx) }

// Take makes the snapshots. The error wraps that of a hook, of the freeze, of package dmhold, or of
// lvm2's command.
func (p provider) Take(ctx context.Context, instant func(context.Context) error) (view.View, error) {
	unlock, err := p.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := p.prepareAll(ctx); err != nil {
		return nil, err
	}
	t := &taken{group: p.Group, since: time.Now(), broken: make(chan struct{})}
	post, err := p.o.Hooks.Around(ctx, p.sources(), func() error { return p.still(ctx, t) })
	t.report.PostHook = post
	if err == nil {
		err = p.complete(ctx)
	}
	if err == nil {
		err = instant(ctx)
	}
	if err != nil {
		return nil, err
	}
	return t, t.open()
}

// still makes the snapshots. What lies on a volume is frozen by the kernel, when it suspends the
// volume; everything is frozen by us before that where this is not enough (see Group.apart).
func (p provider) still(ctx context.Context, t *taken) error {
	apart, err := p.apart()
	if err != nil {
		return err
	}
	if err := p.Flush(ctx); err != nil {
		return err
	}
	if apart {
		t.report, err = view.Together(ctx, p.freezing(), func(ctx context.Context, frozen bool) error {
			_, err := p.snapshot(ctx, frozen)
			return err
		})
	} else {
		t.report.Frozen, err = p.snapshot(ctx, false)
	}
	return err
}

// taken is a view: the snapshots, open for reading.
type taken struct {
	group  *Group
	since  time.Time
	broken chan struct{} // never closed: a snapshot does not break
	images []*image
	report view.Report

	once sync.Once
}

func (t *taken) open() error {
	for _, v := range t.group.volumes {
		path, err := t.group.activate(v)
		if err != nil {
			_, cerr := t.Close()
			return fmt.Errorf("thin: %w", errors.Join(err, cerr))
		}
		im := &image{group: t.group, volume: v}
		t.images = append(t.images, im)
		if im.Device, err = block.Open(path, block.Options{Direct: true}); err == nil && im.Size() != v.Size() {
			err = fmt.Errorf("%s: the snapshot has %d bytes, and %s had %d: it was resized", path, im.Size(), v.Path(), v.Size())
		}
		if err != nil {
			_, cerr := t.Close()
			return fmt.Errorf("thin: %w", errors.Join(err, cerr))
		}
	}
	return nil
}

func (t *taken) Source(i int) view.Source { return t.images[i] }
func (t *taken) Since() time.Time         { return t.since }
func (t *taken) Broken() <-chan struct{}  { return t.broken }

// Close takes the devices of the snapshots away. One that stays, because somebody has opened it, does
// the copy no harm.
func (t *taken) Close() (view.Report, error) {
	t.once.Do(func() {
		for _, im := range t.images {
			var err error
			if im.Device != nil {
				err = im.Device.Close()
			}
			if err = errors.Join(err, t.group.deactivate(context.Background(), im.volume)); err != nil {
				t.group.o.Note("thin: %v", err)
			}
		}
	})
	return t.report, nil
}

// image is a snapshot as a source. The blocks that it does not map are holes.
type image struct {
	*block.Device
	group  *Group
	volume *volume

	mu     sync.Mutex
	mapped *extent.Set // nil until they are asked for
}

// worth is the length from which on it is worth while to ask the metadata for holes: then all of
// the snapshot's mappings are read, once.
const worth = 1 << 20

// Data implements view.Source.
func (im *image) Data(e extent.Extent) (extent.Set, error) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.mapped == nil && e.Len > worth && im.volume.thin.External == "" {
		if err := im.readMappings(); err != nil {
			return extent.Set{}, err
		}
	}
	if im.mapped == nil {
		return extent.NewSet(e), nil
	}
	return im.mapped.Clip(e), nil
}

func (im *image) readMappings() error {
	var found []extent.Extent
	block := im.volume.pool.BlockSize
	err := im.group.mapped(context.Background(), im.volume, func(m thin.Mapping) error {
		e := extent.Extent{Off: int64(m.Begin) * block, Len: int64(m.Len) * block}
		if n := len(found); n > 0 && found[n-1].End() == e.Off {
			found[n-1].Len += e.Len
			return nil
		}
		found = append(found, e)
		return nil
	})
	if err != nil {
		return fmt.Errorf("thin: %s: which blocks the snapshot has cannot be told: %w", im.volume.Path(), err)
	}
	set := extent.NewSet(found...)
	im.mapped = &set
	return nil
}
