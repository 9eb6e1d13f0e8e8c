package vault

import (
	"bytes"
	"cmp"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"tidemark/extent"
	format "tidemark/format/vault"
	"tidemark/internal/faulttree"
	"tidemark/vault/store"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "of the first random sequence; 0: another each time")
	sequences = flag.Int("sequences", 0, "random sequences of each kind; 0: a few")
)

// model is a vault, and what it should hold.
type model struct {
	t      *testing.T
	rng    *rand.Rand
	world  *faulttree.World
	v      *Vault
	cache  string
	disk   format.ID
	now    []byte // of the disk
	points map[format.PointName][]byte
	maybe  map[format.PointName]bool // forgotten, or not, when the power was cut
	clock  time.Time
	made   int // generations that were written
	// impatient: each writer looks whether all that it needs is there, whatever the clock says.
	inside    bool // it acts between the calls of others
	impatient bool
}

func newModel(t *testing.T, seed uint64) *model {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 77))
	m := &model{
		t: t, rng: rng, world: faulttree.New(rng), cache: t.TempDir(), points: map[format.PointName][]byte{},
		maybe: map[format.PointName]bool{}, clock: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), disk: format.ID{1},
	}
	if err := Init(t.Context(), m.store()); err != nil {
		t.Fatal(err)
	}
	m.open()
	t.Cleanup(func() { m.v.Close() })
	return m
}

func (m *model) store() store.Store { return store.OnFiles("world", m.world) }

func (m *model) open() {
	m.t.Helper()
	v, err := Open(m.t.Context(), m.store(), Options{Cache: m.cache})
	if err != nil {
		m.t.Fatal(err)
	}
	m.v = v
}

// reopen begins anew, sometimes without the cache.
func (m *model) reopen() {
	m.t.Helper()
	if err := m.v.Close(); err != nil {
		m.t.Fatal(err)
	}
	if m.rng.IntN(2) == 0 {
		m.cache = m.t.TempDir()
	}
	m.open()
}

// change changes the disk, and returns where. What is outside is as it was.
func (m *model) change() (extent.Set, []byte) {
	next := bytes.Clone(m.now)
	if m.rng.IntN(4) == 0 || len(next) == 0 {
		sizes := []int{0, 1, 512, 65536, 65537, 3 << 20, 16 << 20, 16<<20 + 4096, 20 << 20, 33<<20 + 512}
		size := sizes[m.rng.IntN(len(sizes))]
		if size < len(next) {
			next = next[:size:size]
		}
		next = append(next, make([]byte, size-len(next))...)
	}
	var all []extent.Extent
	for range m.rng.IntN(12) {
		if len(next) == 0 {
			break
		}
		off := m.rng.IntN(len(next))
		n := 1 << m.rng.IntN(20)
		if m.rng.IntN(3) > 0 { // as blocks are
			off, n = off&^4095, max(n, 4096)
		}
		e := extent.Extent{Off: int64(off), Len: int64(min(n, len(next)-off))}
		all = append(all, e)
		piece := next[e.Off:e.End()]
		switch m.rng.IntN(5) {
		case 0:
			clear(piece)
		case 1: // what is elsewhere, too
			copy(piece, next[m.rng.IntN(len(next)):])
		case 2:
			for i := range piece {
				piece[i] = byte(i / 700 % 5)
			}
		default:
			for i := 0; i < len(piece); i += 1 + m.rng.IntN(9) {
				piece[i] = byte(m.rng.Uint32())
			}
		}
	}
	return extent.NewSet(all...), next
}

// base picks what the next point is made from, and what must be put because of that.
func (m *model) base(changed extent.Set, next []byte) (*Point, extent.Set) {
	points, err := m.v.Points(m.t.Context(), m.disk)
	if err != nil {
		m.t.Fatal(err)
	}
	whole := extent.NewSet(extent.Extent{Len: int64(len(next))})
	if len(points) == 0 || m.rng.IntN(5) == 0 {
		return nil, whole // gaps of the base are zeros, so all of it
	}
	points = slices.DeleteFunc(points, func(p Point) bool { return m.impatient && m.points[p.Name] == nil }) // being made by another
	if len(points) == 0 {
		return nil, whole
	}
	p := points[m.rng.IntN(len(points))]
	if m.rng.IntN(4) > 0 {
		p = points[len(points)-1]
	}
	old, ok := m.points[p.Name]
	if !ok {
		m.t.Fatalf("%v is a point that was never made", p.Name)
	}
	differ := differing(old, next)
	if m.rng.IntN(3) == 0 { // a coarse tracker
		differ = differ.Align(65536, int64(len(next)))
	}
	return &p, differ.Union(changed.Clip(extent.Extent{Len: int64(len(next))}))
}

// differing returns where next differs from old, beyond whose end there are zeros.
func differing(old, next []byte) extent.Set {
	var b extent.Builder
	const step = 512
	for at := 0; at < len(next); at += step {
		end := min(at+step, len(next))
		was := make([]byte, end-at)
		if at < len(old) {
			copy(was, old[at:])
		}
		if !bytes.Equal(was, next[at:end]) {
			b.Add(extent.Extent{Off: int64(at), Len: int64(end - at)})
		}
	}
	return b.Set()
}

// backup makes a point of a changed disk, by a pass before the change and one behind it.
func (m *model) backup() error {
	m.t.Helper()
	changed, next := m.change()
	base, set := m.base(changed, next)
	w, err := m.v.Begin(m.t.Context(), From{Disk: m.disk, Size: int64(len(next)), Base: base})
	if err != nil {
		return err
	}
	if m.impatient || m.rng.IntN(2) == 0 {
		w.check = 0
	}
	if m.rng.IntN(2) == 0 {
		w.may = scatter{segments: 4, gathered: 3, entries: 64}
	}
	m.clock = m.clock.Add(time.Minute)
	err = m.write(w, set, next)
	var p Point
	if err == nil {
		p, err = w.Commit(format.Point{Moment: m.clock, Mark: "mark", Tags: []string{"b", "a", "b"}})
	}
	if err = errors.Join(err, w.Close()); p.Name != (format.PointName{}) {
		m.points[p.Name] = next // it may be there also when the power was cut
		if err != nil {
			m.maybe[p.Name] = true
		}
	}
	if err == nil {
		m.now = next
	}
	return err
}

func (m *model) write(w *Writer, set extent.Set, next []byte) error {
	if m.rng.IntN(2) == 0 { // what an earlier pass read
		torn := bytes.Clone(next)
		for i := 0; i < len(torn); i += 100 + m.rng.IntN(5000) {
			torn[i] ^= 1
		}
		if err := w.Copy(bytes.NewReader(torn), set); err != nil {
			return err
		}
	}
	for _, e := range set.Extents() {
		if m.rng.IntN(8) == 0 {
			if err := w.Zero(e); err != nil {
				return err
			}
		}
	}
	return w.Copy(bytes.NewReader(next), set)
}

// forget forgets some points.
func (m *model) forget() error {
	for name := range m.points {
		if m.rng.IntN(3) > 0 {
			continue
		}
		m.maybe[name] = true
		if err := m.v.Forget(m.t.Context(), name); err != nil {
			return err
		}
		delete(m.points, name)
		delete(m.maybe, name)
	}
	return nil
}

func (m *model) prune() error {
	m.world.Pass(time.Duration(m.rng.IntN(30)) * time.Hour)
	did, err := m.v.Prune(m.t.Context(), PruneOptions{Now: m.rng.IntN(4) == 0})
	m.made += did.Rewritten
	return err
}

// step does something.
func (m *model) step() error {
	switch n := m.rng.IntN(10); {
	case n < 6:
		return m.backup()
	case n < 7:
		return m.forget()
	case n < 9:
		return m.prune()
	}
	m.reopen()
	return nil
}

// settle makes sure which points there are after a crash.
func (m *model) settle() {
	m.t.Helper()
	names, err := m.v.pointNames(m.t.Context(), format.ID{})
	if err != nil {
		m.t.Fatal(err)
	}
	there := map[format.PointName]bool{}
	for _, name := range names {
		there[name] = true
	}
	for name := range m.maybe {
		if there[name] {
			continue
		}
		delete(m.points, name)
		if err := m.v.Forget(m.t.Context(), name); err != nil { // it is gone, and after a power cut, too
			m.t.Fatal(err)
		}
	}
	clear(m.maybe)
}

// check holds every point against its array, each difference against two arrays, and the vault against
// its own rules.
func (m *model) check() {
	m.t.Helper()
	ctx := m.t.Context()
	points, err := m.v.Points(ctx, format.ID{})
	if err != nil {
		m.t.Fatal(err)
	}
	if len(points) != len(m.points) {
		m.t.Fatalf("%d points, want %d", len(points), len(m.points))
	}
	for _, p := range points {
		want, ok := m.points[p.Name]
		if !ok {
			m.t.Fatalf("%v was never made, or is forgotten", p.Name)
		}
		m.same(p, want)
	}
	if len(points) > 1 {
		a, b := points[m.rng.IntN(len(points))], points[m.rng.IntN(len(points))]
		found, err := m.v.Diff(ctx, a, b)
		if err != nil {
			m.t.Fatal(err)
		}
		old, next := m.points[a.Name], m.points[b.Name]
		n := min(len(old), len(next))
		for _, e := range differing(old[:n], next[:n]).Subtract(found).Extents() {
			if !bytes.Equal(old[e.Off:e.End()], next[e.Off:e.End()]) {
				m.t.Fatalf("%v differs between %v and %v, and is not named", e, a.Name, b.Name)
			}
		}
	}
	sum, err := m.v.Verify(ctx, VerifyOptions{Data: m.rng.IntN(3) == 0, Damage: func(d Damage) { m.t.Errorf("%+v", d) }})
	if err != nil || sum.Points != len(points) {
		m.t.Fatalf("%+v, %v", sum, err)
	}
}

func (m *model) same(p Point, want []byte) {
	m.t.Helper()
	r := m.v.Reader(m.t.Context(), p)
	got := make([]byte, r.Size())
	if n, err := r.ReadAt(got, 0); len(got) > 0 && err != nil || n != len(got) {
		m.t.Fatalf("%v: %d bytes, %v", p.Name, n, err)
	}
	if !bytes.Equal(got, want) {
		at := 0
		for at < min(len(got), len(want)) && got[at] == want[at] {
			at++
		}
		m.t.Fatalf("%v has %d bytes, want %d; the first that differs is at %d", p.Name, len(got), len(want), at)
	}
	data, err := r.Data(extent.Extent{Len: r.Size()})
	if err != nil {
		m.t.Fatal(err)
	}
	for _, e := range extent.NewSet(extent.Extent{Len: r.Size()}).Subtract(data).Extents() {
		if len(bytes.Trim(want[e.Off:e.End()], "\x00")) > 0 {
			m.t.Fatalf("%v: %v should be a hole", p.Name, e)
		}
	}
}

// seeds returns those of the random sequences.
func seeds(usual int) (all []uint64) {
	first := *seedFlag
	if first == 0 {
		first = rand.Uint64N(1 << 40)
	}
	for i := range cmp.Or(*sequences, usual) {
		all = append(all, first+uint64(i))
	}
	return all
}

// Whatever is backed up, forgotten and pruned in whatever order, every point is what it was.
func TestEveryPointIsWhatItWas(t *testing.T) {
	for _, seed := range seeds(2) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			m := newModel(t, seed)
			for range 25 {
				if err := m.step(); err != nil {
					t.Fatal(err)
				}
				m.check()
			}
		})
	}
}

// The power is cut, or a call fails, in the middle of whatever is done: what was there is there,
// what was being made is there whole or not at all, and everything goes on.
func TestACrashLeavesGarbageAndNoDamage(t *testing.T) {
	for _, seed := range seeds(3) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			m := newModel(t, seed)
			for range 3 {
				if err := m.backup(); err != nil {
					t.Fatal(err)
				}
			}
			crashes := 0
			for range 30 {
				n := m.rng.IntN(60)
				if cut := m.rng.IntN(2) == 0; cut {
					m.world.CutAfter(n)
				} else {
					m.world.FailAfter(n)
				}
				if err := m.step(); err != nil {
					crashes++
					if !m.world.IsOff() && !errors.Is(err, faulttree.ErrInjected) && !errors.Is(err, ErrBusy) {
						t.Fatal(err)
					}
				}
				if m.world.IsOff() {
					m.world.Restart()
				}
				m.world.Calm()
				m.world.Pass(2 * time.Hour) // leases of the dead end
				m.reopen()
				m.settle()
				m.check()
			}
			if crashes == 0 {
				t.Error("nothing ever failed")
			}
		})
	}
}

// Once nothing is under way, prunes leave what is needed and no more.
func TestPruneLeavesNothingDead(t *testing.T) {
	for _, seed := range seeds(2) {
		m := newModel(t, seed)
		for range 12 {
			if err := m.step(); err != nil {
				t.Fatal(err)
			}
		}
		if err := m.forget(); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			m.world.Pass(DefaultGrace)
			if _, err := m.v.Prune(t.Context(), PruneOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		sum, err := m.v.Verify(t.Context(), VerifyOptions{})
		if err != nil || sum.Unneeded != 0 || sum.Damages != 0 {
			t.Errorf("seed %d: %+v, %v", seed, sum, err)
		}
		for _, prefix := range []string{format.DeadPrefix, format.LeasesPrefix, store.TempPrefix} {
			err := m.store().List(t.Context(), prefix, func(i store.Info) error { return fmt.Errorf("%s is left", i.Name) })
			if err != nil {
				t.Errorf("seed %d: %v", seed, err)
			}
		}
		m.check()
	}
}
