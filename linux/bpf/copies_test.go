package bpf

import (
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// What the copies cost: nanoseconds of all programs together for a write to a loop device, by
// the kernel's own statistics. They include some ten for each program that is called.
func BenchmarkCopies(b *testing.B) {
	for name, began := range map[string]string{"one": progBegan, "five": beganCopies} {
		b.Run(name, func(b *testing.B) {
			f := installed(b, began)
			dev, d := smallLoop(b)
			if err := f.Put(d, emptyBitmap(b, f, 256)); err != nil {
				b.Fatal(err)
			}
			disk, err := os.OpenFile(dev, os.O_RDWR|unix.O_DIRECT, 0)
			if err != nil {
				b.Fatal(err)
			}
			defer disk.Close()
			stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
			if err != nil {
				b.Fatal(err)
			}
			defer stats.Close()
			for b.Loop() {
				writePages(b, disk, 16<<12)
			}
			var total float64
			for name, p := range f.progs {
				if s, err := p.Stats(); err == nil && s.RunCount != 0 {
					b.ReportMetric(float64(s.Runtime.Nanoseconds())/float64(s.RunCount), "ns/"+name)
					total += float64(s.Runtime.Nanoseconds())
				}
			}
			b.ReportMetric(total/float64(b.N), "bpf-ns/write")
		})
	}
}
