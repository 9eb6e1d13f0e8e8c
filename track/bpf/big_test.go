package bpf_test

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/extent"
)

func TestLargeDiscardIsOneExtent(t *testing.T) {
	dev := loopDisk(t, 8<<30)
	l := open(t, dev, places(t))
	m1 := cut(t, l)
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	e := extent.Extent{Off: 1<<20 + 4096, Len: 5 << 30}
	if err := ioctlRange(int(f.Fd()), unix.BLKDISCARD, e); err != nil {
		t.Fatal(err)
	}
	m2 := cut(t, l)
	wantChanges(t, l, m1, m2, e)
	if c, err := l.Cut(t.Context()); err != nil || c.Doubt {
		t.Errorf("doubt %v, error %v", c.Doubt, err)
	}
}

func TestBlockSizeIsTheUnitOfChanges(t *testing.T) {
	opts := places(t)
	opts.BlockSize = 1 << 20
	dev := loopDisk(t, 16<<20+8192) // the last block is short
	l := open(t, dev, opts)
	m := cut(t, l)
	write(t, dev, 5<<20+4096, 4096, 1)
	write(t, dev, 16<<20, 4096, 1)
	wantChanges(t, l, m, "", extent.Extent{Off: 5 << 20, Len: 1 << 20}, extent.Extent{Off: 16 << 20, Len: 8192})
	for _, bad := range []int64{-1, 512, 5000, 1 << 31} {
		opts.BlockSize = bad
		if _, err := opened(t.Context(), dev, opts); err == nil {
			t.Errorf("block size %d was accepted", bad)
		}
	}
}

func BenchmarkNothingChangedOnOneTebibyte(b *testing.B) {
	dev := loopDisk(b, 1<<40)
	opts := places(b)
	first, err := opened(b.Context(), dev, opts)
	if err != nil {
		b.Fatal(err)
	}
	c, err := first.Cut(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	if err := first.Keep(b.Context(), "bench", c.Mark, false); err != nil {
		b.Fatal(err)
	}
	first.Close()
	var inCut time.Duration
	for b.Loop() {
		l, err := opened(b.Context(), dev, opts)
		if err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		now, err := l.Cut(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		inCut += time.Since(start)
		set, err := l.Changes(b.Context(), c.Mark, now.Mark)
		if err != nil || !set.Empty() {
			b.Fatal(set, err)
		}
		c = now
		if err := l.Keep(b.Context(), "bench", c.Mark, false); err != nil {
			b.Fatal(err)
		}
		if err := l.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(inCut.Milliseconds())/float64(b.N), "ms/cut")
}
