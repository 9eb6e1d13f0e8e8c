package track

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tidemark/extent"
)

const historyBlocks = 64

// historyModel is a history of epochs without a kernel: what ended is a file at
// once.
type historyModel struct {
	s      *session
	now    uint64
	epochs map[uint64]extent.Set // what really changed
	ls     leases
	since  map[string]uint64 // epoch of each owner's mark
	reader *fileLock
	from   uint64 // the epoch at which the reader came
	clock  time.Time
}

func newHistoryModel(t *rapid.T, dir string) *historyModel {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	rec := record{Generation: "0123456789abcdef", Size: historyBlocks * 4096, Granularity: 4096}
	return &historyModel{
		s: &session{dir: dir, rec: rec, pl: place{pins: filepath.Join(dir, "none")}}, now: 1,
		epochs: map[uint64]extent.Set{}, since: map[string]uint64{}, clock: time.Unix(0, 0).UTC(),
		ls: leases{Owners: map[string]lease{}, Dropped: map[uint64]string{}},
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
	if err := m.s.saveSpan(span{m.now, m.now + 1}, m.epochs[m.now]); err != nil {
		t.Fatal(err)
	}
	m.now++
}

func (m *historyModel) lease(epoch uint64) lease {
	m.clock = m.clock.Add(time.Second)
	return lease{Mark: moment{generation: m.s.rec.Generation, epoch: epoch}.mark(), Epoch: epoch, Time: m.clock}
}

// keep gives an owner a mark of now.
func (m *historyModel) keep(t *rapid.T) {
	owner := fmt.Sprint("owner", rapid.IntRange(0, 3).Draw(t, "owner"))
	m.ls.keep(owner, m.lease(m.now))
	m.since[owner] = m.now
}

func (m *historyModel) drop(t *rapid.T) {
	owner := fmt.Sprint("owner", rapid.IntRange(0, 3).Draw(t, "owner"))
	m.ls.keep(owner, lease{})
	delete(m.since, owner)
}

func (m *historyModel) remember(*rapid.T) { m.ls.remember(m.lease(m.now)) }

// compact tidies up; now and then it leaves what it should have removed, as if
// it had been killed.
func (m *historyModel) compact(t *rapid.T) {
	before, err := spans(m.s.dir)
	if err != nil {
		t.Fatal(err)
	}
	kept := map[span][]byte{}
	if rapid.IntRange(0, 3).Draw(t, "crash") == 0 {
		for _, sp := range before {
			raw, err := os.ReadFile(sp.file(m.s.dir))
			if err != nil {
				t.Fatal(err)
			}
			kept[sp] = raw
		}
	}
	if err := m.s.compact(t.Context(), m.ls, m.now); err != nil {
		t.Fatal(err)
	}
	for sp, raw := range kept {
		if rapid.Bool().Draw(t, "left") {
			if err := os.WriteFile(sp.file(m.s.dir), raw, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// read opens or closes the reader.
func (m *historyModel) read(t *rapid.T) {
	if m.reader != nil {
		os.Remove(m.reader.f.Name())
		m.reader.unlock()
		m.reader = nil
		return
	}
	var err error
	if m.reader, err = newReader(m.s.dir, m.now); err != nil {
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
	got, err := m.s.gather(from, to)
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
				m.reader.unlock()
			}
		}()
		t.Repeat(map[string]func(*rapid.T){
			"end": m.end, "keep": m.keep, "drop": m.drop, "remember": m.remember,
			"compact": m.compact, "read": m.read, "": m.check,
		})
	})
}

func TestHistoryIsBoundedByTheLeases(t *testing.T) {
	s := &session{dir: t.TempDir(), rec: record{Generation: "0123456789abcdef", Size: 4096, Granularity: 4096}}
	s.pl.pins = filepath.Join(s.dir, "none")
	ls := leases{Owners: map[string]lease{}, Dropped: map[uint64]string{}}
	mark := func(e uint64) lease {
		return lease{Mark: moment{generation: s.rec.Generation, epoch: e}.mark(), Epoch: e, Time: time.Unix(int64(e), 0)}
	}
	for e := uint64(1); e <= 200; e++ {
		ls.keep(fmt.Sprint("owner", e), mark(e))
		ls.remember(mark(e))
		if err := s.saveSpan(span{e, e + 1}, extent.Set{}); err != nil {
			t.Fatal(err)
		}
		if err := s.compact(t.Context(), ls, e+1); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(ls.Owners); n != maxOwners+maxAnonymous {
		t.Errorf("%d owners, want %d", n, maxOwners+maxAnonymous)
	}
	files, err := spans(s.dir)
	if err != nil || len(files) > maxOwners+1 || files[0].from != 200-maxOwners+1 {
		t.Errorf("%d files from epoch %d on (%v)", len(files), files[0].from, err)
	}
	if ls.Dropped[200-maxOwners] == "" || len(ls.Dropped) > maxDropped {
		t.Errorf("the dropped marks have no reason: %v", ls.Dropped)
	}
	_, err = s.gather(100, 201)
	if lost := (*LostError)(nil); !errors.As(err, &lost) {
		t.Errorf("a dropped mark: %v", err)
	}
	ls.keep("owner200", lease{})
	if slices.Contains(ls.boundaries(), 0) {
		t.Error("a dropped lease left a boundary")
	}
}

func TestMarksAreReadAsTheyAreWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := moment{
			generation: fmt.Sprintf("%016x", rapid.Uint64().Draw(t, "generation")),
			epoch:      rapid.Uint64Min(1).Draw(t, "epoch"),
		}
		if rapid.Bool().Draw(t, "partition") {
			m.slice.Off = rapid.Int64Range(0, 1<<50).Draw(t, "off")
			m.slice.Len = rapid.Int64Range(1, 1<<50).Draw(t, "len")
		}
		if got, err := m.mark().parse(); err != nil || got != m || !m.mark().Valid() {
			t.Fatalf("%v is read as %v: %v", m, got, err)
		}
	})
}

func FuzzMark(f *testing.F) {
	f.Add("bpf:0123456789abcdef:7")
	f.Add("bpf:0123456789abcdef:7:512+4096")
	f.Fuzz(func(t *testing.T, s string) {
		m, err := Mark(s).parse()
		if err == nil && m.mark() != Mark(s) {
			t.Errorf("%q is read as %q", s, m.mark())
		}
	})
}
