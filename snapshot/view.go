package snapshot

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"tidemark/block"
	"tidemark/linux/dm"
	"tidemark/view"
)

// Kind is the kind of the views.
const Kind = "dm"

// ViewOptions say how to make views. MaxFreeze is required.
type ViewOptions struct {
	Sources   []*block.Device // as in view.Options
	Hooks     view.Hooks
	MaxFreeze time.Duration // bounds the time that users of the sources wait
}

// View returns a provider whose views are transient snapshots of all sources, of one instant: users
// of the sources wait for that moment alone. The stores lie where those of Create do by themselves,
// and take up to half of the room that there is.
func View(o Options, vo ViewOptions) view.Provider { return provider{o, vo} }

// Judge returns nil when a view could be taken now, as far as can be told without taking it. The
// errors are those of Create.
func Judge(o Options, vo ViewOptions) error {
	ctl, err := dm.Open()
	if err != nil {
		return err
	}
	defer ctl.Close()
	s := &Snapshot{Name: Kind, Chunk: DefaultChunk, Transient: true, o: o}
	for _, d := range vo.Sources {
		v, err := origin(ctl, d.Path())
		if err == nil {
			err = s.plan(v, Device{}, 0)
		}
		if err == nil {
			err = v.first(ctl)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

type provider struct {
	o  Options
	vo ViewOptions
}

func (provider) Kind() string { return Kind }

// Traits says that snapshots are read, while users go on.
func (provider) Traits() view.Traits { return view.Traits{Apart: true} }

// Flush has the users of the sources write out what they hold, so that what follows is short.
func (p provider) Flush(ctx context.Context) error {
	return view.Freeze(view.Options{Sources: p.vo.Sources}).Flush(ctx)
}

// Take takes the snapshot. The errors are those of Create, and of hooks.
func (p provider) Take(ctx context.Context, instant func(context.Context) error) (_ view.View, err error) {
	var id [4]byte
	rand.Read(id[:])
	req := Request{Name: "view-" + hex.EncodeToString(id[:]), Transient: true, MaxFreeze: p.vo.MaxFreeze, Instant: instant}
	for _, s := range p.vo.Sources {
		req.Devices = append(req.Devices, Device{Path: s.Path(), Dev: s.Identity().Dev()})
	}
	t := &taken{since: time.Now(), broken: make(chan struct{})}
	post, err := p.vo.Hooks.Around(ctx, p.vo.Sources, func() (err error) {
		t.snapshot, err = Create(ctx, p.o, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	t.report = view.Report{Frozen: t.snapshot.Frozen, PostHook: post}
	if err := t.open(p.vo.Sources); err != nil {
		_, cerr := t.Close()
		return nil, errors.Join(err, cerr)
	}
	watched, stop := context.WithCancel(context.WithoutCancel(ctx))
	t.stop = stop
	t.watching.Go(func() { t.watch(watched) })
	return t, nil
}

// taken is a view: the images, open for reading.
type taken struct {
	snapshot *Snapshot
	since    time.Time
	images   []*block.Device
	report   view.Report
	broken   chan struct{}
	stop     context.CancelFunc
	watching sync.WaitGroup

	once sync.Once
	err  error
}

func (t *taken) open(sources []*block.Device) error {
	for i, v := range t.snapshot.Volumes {
		d, err := block.Open(t.snapshot.Image(v), block.Options{Direct: true})
		if err != nil {
			return fmt.Errorf("snapshot: %w", err)
		}
		t.images = append(t.images, d)
		if d.Size() != sources[i].Size() {
			return fmt.Errorf("snapshot: %s has %d bytes, and %s had %d: it was resized", d.Path(), d.Size(), sources[i].Path(), sources[i].Size())
		}
	}
	return nil
}

// watchEvery is how often a view looks whether it is lost, beside the kernel's events.
const watchEvery = 2 * time.Second

// watch closes broken when the snapshot is lost.
func (t *taken) watch(ctx context.Context) {
	for ctx.Err() == nil {
		if t.lost() != nil {
			close(t.broken)
			return
		}
		if t.snapshot.Watch(ctx, watchEvery) != nil {
			return // Close finds out
		}
	}
}

// lost says why the images cannot be relied on.
func (t *taken) lost() error {
	st, err := t.snapshot.Status()
	if err == nil && st.Lost != "" {
		err = fmt.Errorf("%w: the snapshot is lost: %s", view.ErrBroken, st.Lost)
	}
	return err
}

func (t *taken) Source(i int) view.Source { return t.images[i] }
func (t *taken) Since() time.Time         { return t.since }
func (t *taken) Broken() <-chan struct{}  { return t.broken }

// Close ends the snapshot. The error wraps view.ErrBroken when it was lost before.
func (t *taken) Close() (view.Report, error) {
	t.once.Do(func() {
		if t.stop != nil {
			t.stop()
			t.watching.Wait()
		}
		errs := []error{t.lost()}
		for _, d := range t.images {
			errs = append(errs, d.Close())
		}
		t.err = errors.Join(append(errs, t.snapshot.Destroy(context.Background(), true))...)
	})
	return t.report, t.err
}
