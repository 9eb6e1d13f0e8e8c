package bpf_test

import (
	"os"
	"path/filepath"
	"testing"

	"tidemark/extent"
	"tidemark/track/bpf"
)

func TestTrackingOfAnotherRunFolderIsLeftAlone(t *testing.T) {
	opts := places(t)
	other := opts
	other.RunDir = filepath.Join(t.TempDir(), "run")
	dev, dev2 := loopDisk(t, 16<<20), loopDisk(t, 16<<20)
	l := open(t, dev, opts)
	m := cut(t, l)
	a, b := open(t, dev, other), open(t, dev2, other)
	ma, mb := cut(t, a), cut(t, b)
	for _, d := range []string{dev, dev2} {
		write(t, d, 4096, 4096, 1)
	}
	want := extent.Extent{Off: 4096, Len: 4096}
	wantChanges(t, l, m, "", want)
	wantChanges(t, a, ma, "", want)
	wantChanges(t, b, mb, "", want)
	for _, d := range []string{dev, dev2} {
		if err := bpf.Stop(t.Context(), d, other); err != nil {
			t.Fatal(err)
		}
	}
	wantChanges(t, l, m, "", want)
	if _, err := os.Stat(a.Pins()); err == nil {
		t.Error("the programs of the stopped tracking are still there")
	}
}

func TestMarkThatIsAskedFromAgainAndAgainIsKept(t *testing.T) {
	opts := places(t)
	dev := loopDisk(t, 16<<20)
	first := open(t, dev, opts)
	m := cut(t, first)
	if err := first.Remember(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	write(t, dev, 4096, 4096, 1)
	for range 40 {
		l, err := opened(t.Context(), dev, opts)
		if err != nil {
			t.Fatal(err)
		}
		now := cut(t, l)
		wantChanges(t, l, m, now, extent.Extent{Off: 4096, Len: 4096})
		if err := l.Remember(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		if err := l.Remember(t.Context(), now); err != nil {
			t.Fatal(err)
		}
		if err := l.Persist(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
