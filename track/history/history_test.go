package history

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tidemark/extent"
	"tidemark/track"
)

const (
	historyBlocks = 64
	generation    = "0123456789abcdef"
)

// held is a backend in memory: closed epochs that are not files yet.
type held map[uint64]extent.Set

func (p held) Epochs() ([]uint64, error) { return slices.Sorted(maps.Keys(p)), nil }

func (p held) Load(e uint64) (extent.Set, error) {
	set, ok := p[e]
	if !ok {
		return set, fs.ErrNotExist
	}
	return set, nil
}

func (p held) Drop(e uint64) error {
	delete(p, e)
	return nil
}

// historyModel is a history of epochs without a kernel.
type historyModel struct {
	h      *History
	held   held
	now    uint64
	epochs map[uint64]extent.Set // what really changed
	ls     Leases
	since  map[string]uint64 // epoch of each owner's mark
	reader *Reader
	from   uint64 // the epoch at which the reader came
	clock  time.Time
}

func newHistoryModel(t *rapid.T, dir string) *historyModel {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	p := held{}
	return &historyModel{
		h: &History{Dir: dir, Generation: generation, Size: historyBlocks * 4096, Granularity: 4096, Pinned: p}, held: p, now: 1,
		epochs: map[uint64]extent.Set{}, since: map[string]uint64{}, clock: time.Unix(0, 0).UTC(),
		ls: Leases{Owners: map[string]Lease{}, Dropped: map[uint64]string{}},
	}
}

// end ends an epoch with random changes.
func (m *historyModel) end(t *rapid.T) {
	var exts []extent.Extent
	for range rapid.IntRange(0, 3).Draw(t, "extents") {
		off := rapid.Int64Range(0, historyBlocks-1).Draw(t, "block")
		exts = append(exts, extent.Extent{Off: off * 4096, Len: 4096 * rapid.Int64Range(1, historyBlocks-off).Draw(t, "blocks")})
	}
	m.epochs[m.now] = extent.NewSet(exts...)
	m.held[m.now] = m.epochs[m.now]
	m.now++
}

func (m *historyModel) lease(epoch uint64) Lease {
	m.clock = m.clock.Add(time.Second)
	return leaseOf(epoch, m.clock)
}

func leaseOf(epoch uint64, at time.Time) Lease {
	return Lease{Mark: track.NewMark("test", fmt.Sprint(epoch)), Epoch: epoch, Time: at}
}

// keep gives an owner a mark of now.
func (m *historyModel) keep(t *rapid.T) {
	owner := fmt.Sprint("owner", rapid.IntRange(0, 3).Draw(t, "owner"))
	m.ls.Keep(owner, m.lease(m.now))
	m.since[owner] = m.now
}

func (m *historyModel) drop(t *rapid.T) {
	owner := fmt.Sprint("owner", rapid.IntRange(0, 3).Draw(t, "owner"))
	m.ls.Keep(owner, Lease{})
	delete(m.since, owner)
}

func (m *historyModel) remember(*rapid.T) { m.ls.Remember(m.lease(m.now)) }

// compact tidies up; now and then it leaves what it should have removed, as if
// it had been killed.
func (m *historyModel) compact(t *rapid.T) {
	if rapid.Bool().Draw(t, "persist") {
		if err := m.h.Persist(m.now); err != nil {
			t.Fatal(err)
		}
	}
	before, err := spans(m.h.Dir)
	if err != nil {
		t.Fatal(err)
	}
	kept := map[span][]byte{}
	if rapid.IntRange(0, 3).Draw(t, "crash") == 0 {
		for _, sp := range before {
			raw, err := os.ReadFile(sp.file(m.h.Dir))
			if err != nil {
				t.Fatal(err)
			}
			kept[sp] = raw
		}
	}
	if err := m.h.compact(t.Context(), m.ls, m.now); err != nil {
		t.Fatal(err)
	}
	for sp, raw := range kept {
		if rapid.Bool().Draw(t, "left") {
			if err := os.WriteFile(sp.file(m.h.Dir), raw, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// read opens or closes the reader.
func (m *historyModel) read(t *rapid.T) {
	if m.reader != nil {
		if err := m.reader.Close(); err != nil {
			t.Fatal(err)
		}
		m.reader = nil
		return
	}
	var err error
	if m.reader, err = m.h.NewReader(m.now); err != nil {
		t.Fatal(err)
	}
	m.from = m.now
}

// check asks for the changes since every mark that is kept.
func (m *historyModel) check(t *rapid.T) {
	for owner, one := range m.ls.Owners {
		m.wantExactly(t, owner, one.Epoch, m.now)
	}
	if m.reader != nil {
		for e := m.from; e < m.now; e++ {
			m.wantExactly(t, "the reader", e, m.now)
			m.wantExactly(t, "the reader", e, e+1)
		}
	}
}

func (m *historyModel) wantExactly(t *rapid.T, who string, from, to uint64) {
	var want extent.Set
	for e := from; e < to; e++ {
		want = want.Union(m.epochs[e])
	}
	if err := m.h.Check(from, to); err != nil {
		t.Fatalf("%s: epochs %d to %d cannot be told: %v", who, from, to, err)
	}
	got, err := m.h.Changes(from, to)
	if err != nil {
		t.Fatalf("%s: epochs %d to %d: %v", who, from, to, err)
	}
	if !want.Subtract(got).Empty() {
		t.Fatalf("%s: epochs %d to %d: lost %v", who, from, to, want.Subtract(got).Extents())
	}
	if who == "the reader" {
		return // a file left by a crash may tell too much of an inner mark
	}
	if !got.Equal(want) {
		t.Fatalf("%s: epochs %d to %d: too much: %v", who, from, to, got.Subtract(want).Extents())
	}
}

func TestKeptMarksSurviveMergingAndDropping(t *testing.T) {
	dir := t.TempDir()
	runs := 0
	rapid.Check(t, func(t *rapid.T) {
		runs++
		m := newHistoryModel(t, filepath.Join(dir, fmt.Sprint(runs)))
		defer func() {
			if m.reader != nil {
				m.reader.Close()
			}
		}()
		t.Repeat(map[string]func(*rapid.T){
			"end": m.end, "keep": m.keep, "drop": m.drop, "remember": m.remember,
			"compact": m.compact, "read": m.read, "": m.check,
		})
	})
}

func TestHistoryIsBoundedByTheLeases(t *testing.T) {
	h := &History{Dir: t.TempDir(), Generation: generation, Size: 4096, Granularity: 4096, Pinned: held{}}
	ls := Leases{Owners: map[string]Lease{}, Dropped: map[uint64]string{}}
	mark := func(e uint64) Lease { return leaseOf(e, time.Unix(int64(e), 0)) }
	for e := uint64(1); e <= 200; e++ {
		ls.Keep(fmt.Sprint("owner", e), mark(e))
		ls.Remember(Lease{Mark: track.NewMark("test", fmt.Sprint("asked", e)), Epoch: e, Time: time.Unix(int64(e), 0)})
		if err := h.write(span{e, e + 1}, extent.Set{}); err != nil {
			t.Fatal(err)
		}
		if err := h.compact(t.Context(), ls, e+1); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(ls.Owners); n != maxOwners+maxAnonymous {
		t.Errorf("%d owners, want %d", n, maxOwners+maxAnonymous)
	}
	files, err := spans(h.Dir)
	if err != nil || len(files) > maxOwners+1 || files[0].from != 200-maxOwners+1 {
		t.Errorf("%d files from epoch %d on (%v)", len(files), files[0].from, err)
	}
	if ls.Dropped[200-maxOwners] == "" || len(ls.Dropped) > maxDropped {
		t.Errorf("the dropped marks have no reason: %v", ls.Dropped)
	}
	if err := h.save(ls); err != nil {
		t.Fatal(err)
	}
	for _, from := range []uint64{100, 200 - maxOwners} {
		_, err := h.Changes(from, 201)
		if lost := (*track.LostError)(nil); !errors.As(err, &lost) {
			t.Errorf("a dropped mark: %v", err)
		}
		if checked := h.Check(from, 201); err == nil || checked == nil || checked.Error() != err.Error() {
			t.Errorf("a dropped mark: %v when checked, %v when asked", checked, err)
		}
	}
	ls.Keep("owner200", Lease{})
	if slices.Contains(ls.boundaries(), 0) {
		t.Error("a dropped lease left a boundary")
	}
}
