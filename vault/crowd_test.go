package vault

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tidemark/extent"
	format "tidemark/format/vault"
	"tidemark/vault/store"
)

var crowdFor = flag.Duration("crowd", 0, "for how long two writers and a prune are at work at once; 0: for some rounds")

const (
	crowdDisk   = 3 << 20 // bytes
	crowdRounds = 4
)

// hasty is a store whose clock runs fast: leases end, and packs that are dead are removed, while a point
// is written. All that use it at once share the clock. An object is of the moment when its Put
// returned.
type hasty struct {
	store.Store
	clock *hastyClock
}

type hastyClock struct {
	began time.Time
	haste time.Duration // that passes in a second
	mu    sync.Mutex
	put   map[string]time.Time
}

func (c *hastyClock) now() time.Time {
	return c.began.Add(time.Since(c.began) * (c.haste / time.Second))
}

func (c *hastyClock) of(name string) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at, ok := c.put[name]; ok {
		return at
	}
	return c.now() // it is just being put
}

func (h hasty) Put(ctx context.Context, name string, data []byte) error {
	err := h.Store.Put(ctx, name, data)
	if err == nil {
		h.clock.mu.Lock()
		defer h.clock.mu.Unlock()
		if _, again := h.clock.put[name]; !again {
			h.clock.put[name] = h.clock.now()
		}
	}
	return err
}

func (h hasty) List(ctx context.Context, prefix string, each func(store.Info) error) error {
	return h.Store.List(ctx, prefix, func(i store.Info) error {
		i.Time = h.clock.of(i.Name)
		return each(i)
	})
}

func (h hasty) Remove(ctx context.Context, name string) error {
	err := h.Store.Remove(ctx, name)
	h.clock.mu.Lock()
	defer h.clock.mu.Unlock()
	delete(h.clock.put, name)
	return err
}

// crowd are several who are at work in one vault at once.
type crowd struct {
	t     *testing.T
	root  string
	clock *hastyClock

	mu   sync.Mutex
	want map[format.PointName][]byte

	points, overtaken, busy, pruned, removed atomic.Int64
}

func (c *crowd) store() store.Store {
	return hasty{store.OnFiles(c.root, store.Local(c.root)), c.clock}
}

func (c *crowd) open(cache string) *Vault {
	v, err := Open(c.t.Context(), c.store(), Options{Cache: cache})
	if err != nil {
		c.t.Error(err)
	}
	return v
}

// while calls f again and again, with a vault that is opened anew from time to time.
func (c *crowd) while(seed uint64, f func(v *Vault, rng *rand.Rand)) {
	rng := rand.New(rand.NewPCG(seed, 80))
	cache := c.t.TempDir()
	for i := 0; !c.t.Failed() && (*crowdFor == 0 && i < crowdRounds || time.Since(c.clock.began) < *crowdFor); i++ {
		v := c.open(cache)
		if v == nil {
			return
		}
		for range 1 + rng.IntN(6) {
			f(v, rng)
		}
		if err := v.Close(); err != nil {
			c.t.Error(err)
		}
	}
}

// writer makes and forgets points of a disk, whose chunks the other has, too.
func (c *crowd) writer(seed uint64, disk format.ID) {
	content := make([]byte, crowdDisk)
	var mine []Point
	c.while(seed, func(v *Vault, rng *rand.Rand) {
		next, changed := bytes.Clone(content), extent.Set{}
		for range 1 + rng.IntN(12) {
			e := extent.Extent{Off: rng.Int64N(crowdDisk/format.ChunkSize) * format.ChunkSize, Len: format.ChunkSize}
			if rng.IntN(3) == 0 {
				e = extent.Extent{Off: rng.Int64N(crowdDisk/512-64) * 512, Len: 512 * (1 + rng.Int64N(64))}
			}
			copy(next[e.Off:e.End()], noise(byte(rng.IntN(60)), format.ChunkSize))
			changed = changed.Union(extent.NewSet(e))
		}
		var base *Point
		if len(mine) > 0 && rng.IntN(5) > 0 {
			base = &mine[len(mine)-1]
		}
		p, err := c.backup(v, From{Disk: disk, Size: crowdDisk, Base: base}, next, changed)
		switch {
		case errors.Is(err, ErrOvertaken):
			c.overtaken.Add(1)
			return
		case errors.Is(err, ErrBusy): // a prune --now
			c.busy.Add(1)
			return
		case err != nil:
			c.t.Errorf("backup: %v", err)
			return
		}
		content, mine = next, append(mine, p)
		c.points.Add(1)
		c.same(v, p, next)
		for len(mine) > 3 || len(mine) > 1 && rng.IntN(6) == 0 {
			i := rng.IntN(len(mine) - 1)
			c.mu.Lock()
			delete(c.want, mine[i].Name)
			c.mu.Unlock()
			if err := v.Forget(c.t.Context(), mine[i].Name); err != nil {
				c.t.Error(err)
			}
			mine = append(mine[:i], mine[i+1:]...)
		}
	})
}

func (c *crowd) backup(v *Vault, from From, next []byte, changed extent.Set) (p Point, err error) {
	if from.Base == nil {
		changed = extent.NewSet(extent.Extent{Len: crowdDisk})
	}
	w, err := v.Begin(c.t.Context(), from)
	if err != nil {
		return p, err
	}
	if err = w.Copy(bytes.NewReader(next), changed); err == nil {
		p, err = w.Commit(format.Point{Moment: time.Now()})
	}
	if err == nil {
		c.mu.Lock()
		c.want[p.Name] = next
		c.mu.Unlock()
	}
	return p, errors.Join(err, w.Close())
}

func (c *crowd) same(v *Vault, p Point, want []byte) {
	got := make([]byte, crowdDisk)
	if _, err := v.Reader(c.t.Context(), p).ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		c.t.Errorf("%v has other bytes: %v", p.Name, err)
	}
}

func (c *crowd) prune(v *Vault, rng *rand.Rand) {
	o := PruneOptions{Now: rng.IntN(3) == 0, Grace: []time.Duration{MinGrace, 3 * MinGrace, DefaultGrace}[rng.IntN(3)]}
	did, err := v.Prune(c.t.Context(), o)
	c.removed.Add(int64(did.Removed))
	switch {
	case err == nil:
		c.pruned.Add(1)
	case errors.Is(err, ErrBusy), errors.Is(err, ErrOvertaken):
		c.busy.Add(1)
	case errors.Is(err, format.ErrDamaged): // met a point that is about to be withdrawn, and did nothing
		c.busy.Add(1)
	default:
		c.t.Errorf("prune: %v", err)
	}
}

// Two writers and a prune are at work at once, each on its own; time runs, so that leases end and prunes
// remove what is dead meanwhile. Each point that appears is what it should be, and stays that.
func TestTwoWritersAndAPruneAtOnce(t *testing.T) {
	_, root := folder(t)
	seed := seeds(1)[0]
	haste := time.Duration(2+seed%40) * time.Hour
	t.Logf("seed %d: a second is %v", seed, haste)
	c := &crowd{t: t, root: root, clock: &hastyClock{began: time.Now(), haste: haste, put: map[string]time.Time{}}, want: map[format.PointName][]byte{}}
	var all sync.WaitGroup
	all.Go(func() { c.writer(seed, format.ID{1}) })
	all.Go(func() { c.writer(seed+1, format.ID{2}) })
	all.Go(func() { c.while(seed+2, c.prune) })
	all.Wait()
	t.Logf("%d points, %d overtaken, %d times busy; %d prunes removed %d packs", c.points.Load(), c.overtaken.Load(), c.busy.Load(), c.pruned.Load(), c.removed.Load())
	v := open(t, c.store(), Options{})
	points, err := v.Points(t.Context(), format.ID{})
	if err != nil || len(points) != len(c.want) {
		t.Errorf("%d points, want %d: %v", len(points), len(c.want), err)
	}
	for _, p := range points {
		c.same(v, p, c.want[p.Name])
	}
	sum, err := v.Verify(t.Context(), VerifyOptions{Data: true, Damage: func(d Damage) { t.Error(d) }})
	if err != nil {
		t.Errorf("%+v, %v", sum, err)
	}
	if *crowdFor > 0 && (c.points.Load() == 0 || c.removed.Load() == 0) {
		t.Error("nothing was made, or nothing removed")
	}
}
