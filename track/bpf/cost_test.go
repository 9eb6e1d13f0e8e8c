package bpf_test

import (
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"tidemark/block"
	kernel "tidemark/linux/bpf"
)

// What the programs cost, by the kernel's own statistics: for each program the
// nanoseconds of a run, and their sum for one write of 4096 bytes at a random
// place. "cold" writes blocks not yet marked in the epoch, "hot" marked ones,
// "other" is a disk that is not tracked, "bio" one that is bio-based.
func BenchmarkCostOfAWrite(b *testing.B) {
	const size = 256 << 20
	for _, c := range []struct {
		name    string
		disk    func(testing.TB) string
		watched bool
		span    int64 // bytes that are written to
	}{
		{"cold", func(t testing.TB) string { return loopDisk(t, size) }, true, size},
		{"hot", func(t testing.TB) string { return loopDisk(t, size) }, true, 1 << 20},
		{"other", func(t testing.TB) string { return loopDisk(t, size) }, false, size},
		{"bio", func(t testing.TB) string { return zram(t, size) }, true, size},
	} {
		b.Run(c.name, func(b *testing.B) {
			opts := places(b)
			dev := c.disk(b)
			watched := dev
			if !c.watched {
				watched = loopDisk(b, size)
			}
			l, err := opened(b.Context(), watched, opts)
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			fac, err := kernel.Load(l.Pins())
			if err != nil {
				b.Fatal(err)
			}
			defer fac.Close()
			stop, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
			if err != nil {
				b.Fatal(err)
			}
			defer stop.Close()
			b.ResetTimer()
			randomWrites(b, dev, c.span)
			b.StopTimer()
			report(b, fac)
		})
	}
}

// randomWrites writes b.N blocks from four goroutines.
func randomWrites(b *testing.B, dev string, span int64) {
	b.Helper()
	const writers = 4
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			f, err := os.OpenFile(dev, os.O_RDWR|unix.O_DIRECT, 0)
			if err != nil {
				b.Error(err)
				return
			}
			defer f.Close()
			buf := block.AlignedBuffer(4096)
			for i := w; i < b.N; i += writers {
				if _, err := f.WriteAt(buf, rand.Int64N(span/4096)*4096); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// report prints what the kernel counted.
func report(b *testing.B, fac *kernel.Facility) {
	b.Helper()
	var total float64
	for name, p := range fac.Programs() {
		s, err := p.Stats()
		if err != nil {
			b.Fatal(err)
		}
		if s.RunCount > 0 {
			b.ReportMetric(float64(s.Runtime.Nanoseconds())/float64(s.RunCount), "ns/"+name)
		}
		total += float64(s.Runtime.Nanoseconds())
	}
	b.ReportMetric(total/float64(b.N), "bpf-ns/write")
}
