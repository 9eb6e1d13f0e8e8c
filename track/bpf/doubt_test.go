package bpf_test

import (
	"encoding/binary"
	"errors"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"tidemark/extent"
	kernel "tidemark/linux/bpf"
	"tidemark/track"
	"tidemark/track/bpf"
)

// activeMap opens the bitmap that is active: of all pinned ones the one with
// the largest epoch that was put in the slot.
func activeMap(t *testing.T, l *bpf.Tracker) (*ebpf.Map, *kernel.Bitmap) {
	t.Helper()
	pins, err := filepath.Glob(filepath.Join(l.Pins(), "bitmap_*"))
	if err != nil || len(pins) == 0 {
		t.Fatal("no bitmaps:", err)
	}
	var bitmaps []*kernel.Bitmap
	var names []string
	for _, pin := range pins {
		b, err := kernel.OpenBitmap(pin)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Close() })
		if b.Header().Active {
			bitmaps, names = append(bitmaps, b), append(names, pin)
		}
	}
	newest := slices.MaxFunc(bitmaps, func(a, b *kernel.Bitmap) int { return int(a.Header().Epoch) - int(b.Header().Epoch) })
	m, err := ebpf.LoadPinnedMap(names[slices.Index(bitmaps, newest)], nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m, newest
}

// note does what the programs do when they see something they cannot mark.
func note(t *testing.T, l *bpf.Tracker, what kernel.Lost) {
	t.Helper()
	m, _ := activeMap(t, l)
	page := make([]byte, m.ValueSize())
	if err := m.Lookup(uint32(0), &page); err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint64(page, uint64(what))
	if err := m.Put(uint32(0), page); err != nil {
		t.Fatal(err)
	}
}

func TestPassthroughLosesTheMarksBeforeAndNotThoseAfter(t *testing.T) {
	opts, dev, _, l, m := tracked(t)
	note(t, l, kernel.LostPassthrough)
	_, err := l.Changes(t.Context(), m, "")
	wantLost(t, err, "passthrough")
	wantLost(t, l.Vouch(t.Context(), m), "passthrough")
	m2 := cut(t, l)
	_, err = l.Changes(t.Context(), m, m2)
	wantLost(t, err, "passthrough")
	write(t, dev, 8192, 4096, 3)
	wantChanges(t, l, m2, "", extent.Extent{Off: 8192, Len: 4096})
	m3 := cut(t, l) // the loss is remembered
	again := open(t, dev, opts)
	_, err = again.Changes(t.Context(), m, m3)
	wantLost(t, err, "passthrough")
	wantChanges(t, again, m2, m3, extent.Extent{Off: 8192, Len: 4096})
}

func TestEverythingChangedAtOnceIsTheWholeDisk(t *testing.T) {
	_, _, _, l, m := tracked(t)
	m2 := cut(t, l)
	note(t, l, kernel.LostAll)
	wantChanges(t, l, m2, "", extent.Extent{Len: 16 << 20})
	m3 := cut(t, l)
	if err := l.Persist(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantChanges(t, l, m, m3, extent.Extent{Len: 16 << 20})
	wantChanges(t, l, m3, "")
}

func TestSkippedEventsLoseTheMarksBefore(t *testing.T) {
	_, dev, _, l, m := tracked(t)
	_, b := activeMap(t, l)
	h := b.Header()
	h.BaseQueue -= 3 // as if three more had been skipped since
	b.SetHeader(h)
	_, err := l.Changes(t.Context(), m, "")
	wantLost(t, err, "the kernel skipped 3 events")
	wantLost(t, l.Vouch(t.Context(), m), "the kernel skipped 3 events")
	m2 := cut(t, l)
	_, err = l.Changes(t.Context(), m, m2)
	wantLost(t, err, "the kernel skipped 3 events")
	write(t, dev, 0, 4096, 9)
	wantChanges(t, l, m2, "", extent.Extent{Len: 4096})
}

func TestSkippedCompletionsAreDoubt(t *testing.T) {
	opts, dev, _, l, m := tracked(t)
	m2 := cut(t, l)
	other := open(t, dev, opts)
	otherFirst := cut(t, other)
	_, b := activeMap(t, l)
	h := b.Header()
	h.BaseComplete--
	b.SetHeader(h)

	// Whoever cut before is told by his next Cut, whoever makes the cut that
	// notices it; and is told once.
	for _, c := range []struct {
		who  string
		l    *bpf.Tracker
		want bool
	}{{"who ends the epoch", other, true}, {"another", l, true}, {"another, again", l, false}} {
		if got, err := c.l.Cut(t.Context()); err != nil || got.Doubt != c.want {
			t.Errorf("a cut of %s: doubt %v, error %v", c.who, got.Doubt, err)
		}
	}
	third := open(t, dev, opts)
	for range 2 {
		if c, err := third.Cut(t.Context()); err != nil || c.Doubt {
			t.Errorf("a cut of who came later: doubt %v, error %v", c.Doubt, err)
		}
	}

	// A mark of the one who was told is good. To others it is lost, unless
	// nothing was in flight at it.
	for _, mark := range []track.Mark{m, m2} {
		if _, err := l.Changes(t.Context(), mark, ""); err != nil {
			t.Error(err)
		}
		_, err := third.Changes(t.Context(), mark, "")
		wantLost(t, err, "in flight")
		wantLost(t, third.Vouch(t.Context(), mark), "in flight")
	}
	if err := other.Keep(t.Context(), "mirror", otherFirst, true); err != nil {
		t.Fatal(err)
	}
	if _, err := third.Changes(t.Context(), otherFirst, ""); err != nil {
		t.Error("a quiet mark:", err)
	}
}

func TestWriteThatCannotBeRemembered(t *testing.T) {
	opts := places(t)
	dev := zram(t, 16<<20)
	l := open(t, dev, opts)
	m := cut(t, l)
	flights, err := ebpf.LoadPinnedMap(filepath.Join(l.Pins(), "flights"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer flights.Close()
	value := make([]byte, flights.ValueSize())
	for addr := uint64(1); ; addr++ {
		if err := flights.Put(addr, value); errors.Is(err, ebpf.ErrKeyNotExist) || err != nil {
			break // full
		}
	}
	for n := range 64 { // a few more fit, in the reserve of each CPU
		write(t, dev, int64(n)*8192, 4096, 1)
	}
	if c, err := l.Cut(t.Context()); err != nil || !c.Doubt {
		t.Errorf("doubt %v, error %v", c.Doubt, err)
	}
	set, err := l.Changes(t.Context(), m, "")
	if err != nil || set.Bytes() != 64*4096 {
		t.Errorf("%d bytes, error %v", set.Bytes(), err)
	}
}
