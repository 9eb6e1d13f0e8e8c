package bpf_test

import (
	"testing"

	"tidemark/extent"
	"tidemark/track"
	"tidemark/track/bpf"
)

func wantChanges(t testing.TB, l *bpf.Tracker, since, until track.Mark, want ...extent.Extent) {
	t.Helper()
	got, err := l.Changes(t.Context(), since, until)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Vouch(t.Context(), since); err != nil {
		t.Fatalf("the changes since %s can be told, but not vouched for: %v", since, err)
	}
	if !got.Equal(extent.NewSet(want...)) {
		t.Fatalf("changes %s..%s: %v, want %v", since, until, got.Extents(), want)
	}
}

func TestChangesAreWhatWasWrittenBetweenTwoMarks(t *testing.T) {
	opts := places(t)
	dev := loopDisk(t, 64<<20)
	l := open(t, dev, opts)
	m1 := cut(t, l)
	write(t, dev, 1<<20, 8192, 1)
	m2 := cut(t, l)
	write(t, dev, 40960, 4096, 2)
	write(t, dev, 64<<20-4096, 4096, 3)
	m3 := cut(t, l)
	a := extent.Extent{Off: 1 << 20, Len: 8192}
	b := extent.Extent{Off: 40960, Len: 4096}
	c := extent.Extent{Off: 64<<20 - 4096, Len: 4096}
	check := func() {
		t.Helper()
		wantChanges(t, l, m1, m2, a)
		wantChanges(t, l, m2, m3, b, c)
		wantChanges(t, l, m1, m3, a, b, c)
		wantChanges(t, l, m3, m3)
		wantChanges(t, l, m3, "")
		wantChanges(t, l, m2, "", b, c)
	}
	check()
	if err := l.Persist(t.Context()); err != nil {
		t.Fatal(err)
	}
	check()
	sts, err := bpf.List(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", sts)
	if err := bpf.Stop(t.Context(), dev, opts); err != nil {
		t.Fatal(err)
	}
}

// Another process may end the epoch, and make it a file, between the moment that is asked
// for and the reading.
func TestChangesUntilNowWhileAnotherProcessEndsTheEpoch(t *testing.T) {
	opts := places(t)
	dev := loopDisk(t, 16<<20)
	l, other := open(t, dev, opts), open(t, dev, opts)
	m := cut(t, l)
	write(t, dev, 4096, 4096, 1)
	set, err := l.ChangesWhile(t.Context(), m, func() {
		cut(t, other)
		if err := other.Persist(t.Context()); err != nil {
			t.Error(err)
		}
	})
	if err != nil || !set.Equal(extent.NewSet(extent.Extent{Off: 4096, Len: 4096})) {
		t.Errorf("%v, %v", set.Extents(), err)
	}
}

// What is marked by hand counts as changed once, in the epoch in which that was done.
func TestWhatIsMarkedDirtyCountsAsChanged(t *testing.T) {
	opts := places(t)
	const size = 600 << 20 // several pages of a bitmap
	dev := loopDisk(t, size)
	l := open(t, dev, opts)
	m1 := cut(t, l)
	want := []extent.Extent{{Off: 0, Len: 4096}, {Off: 63 * 4096, Len: 66 * 4096}, {Off: 100 << 20, Len: 300 << 20}, {Off: size - 4096, Len: 4096}}
	if err := l.MarkDirty(t.Context(), extent.NewSet(want...)); err != nil {
		t.Fatal(err)
	}
	wantChanges(t, l, m1, "", want...)
	m2 := cut(t, l)
	write(t, dev, 8<<20, 4096, 1)
	m3 := cut(t, l)
	wantChanges(t, l, m1, m2, want...)
	wantChanges(t, l, m2, m3, extent.Extent{Off: 8 << 20, Len: 4096})
	if err := l.MarkDirty(t.Context(), extent.NewSet(extent.Extent{Off: 5, Len: 1})); err != nil {
		t.Fatal(err)
	}
	wantChanges(t, l, m3, "", extent.Extent{Len: 4096})
	if err := l.MarkDirty(t.Context(), extent.NewSet(extent.Extent{Off: size, Len: 1})); err == nil {
		t.Error("what is behind the end was marked")
	}
}
