package era

import (
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"
)

// benchBlocks is 1 TiB in blocks of 64 KiB.
const benchBlocks = 1 << 24

// bigImage writes metadata of n blocks with three writesets and returns its
// path. Seeds are fixed: figures must be comparable.
func bigImage(tb testing.TB, n uint32, size int64) string {
	tb.Helper()
	f, err := os.Create(filepath.Join(tb.TempDir(), "big.img"))
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		tb.Fatal(err)
	}
	b := NewBuilder(f, size)
	if err := feed(b, n); err != nil {
		tb.Fatal(err)
	}
	return f.Name()
}

func feed(s Sink, n uint32) error {
	r := rand.New(rand.NewPCG(1, 2))
	if err := s.Begin(Header{BlockSectors: 128, NrBlocks: n, Era: 100}); err != nil {
		return err
	}
	for e := Era(98); e <= 100; e++ {
		if err := s.BeginWriteset(e, n); err != nil {
			return err
		}
		for at := uint32(0); at < n; at += bitsPerBlock {
			words := make([]uint64, wordsPerBlock)
			for range 50 {
				words[r.IntN(wordsPerBlock)] |= r.Uint64() & r.Uint64()
			}
			k := min(n-at, bitsPerBlock)
			words = words[:(k+63)/64]
			if k%64 != 0 {
				words[len(words)-1] &= 1<<(k%64) - 1
			}
			if err := s.Bits(words, int(k)); err != nil {
				return err
			}
		}
		if err := s.EndWriteset(); err != nil {
			return err
		}
	}
	if err := s.BeginArray(); err != nil {
		return err
	}
	eras := make([]Era, erasPerBlock)
	run, era := 0, Era(0)
	for at := uint32(0); at < n; at += erasPerBlock {
		for i := range eras {
			if run == 0 {
				run, era = 1+r.IntN(64), Era(r.IntN(98))
			}
			eras[i] = era
			run--
		}
		if err := s.Eras(eras[:min(n-at, erasPerBlock)]); err != nil {
			return err
		}
	}
	if err := s.EndArray(); err != nil {
		return err
	}
	return s.End()
}

// userTime returns the user time this process has used.
func userTime(tb testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano())
}

// side runs ours and a tool of Debian's over the same image and reports the
// user time of each.
func side(b *testing.B, image string, ours func(v *View) error, name string, args ...string) {
	b.Run("tidemark", func(b *testing.B) {
		v := openFile(b, image).Live()
		b.ReportAllocs()
		before := userTime(b)
		for b.Loop() {
			if err := ours(v); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric((userTime(b)-before).Seconds()/float64(b.N), "user-s/op")
	})
	b.Run("tools-0.9", func(b *testing.B) { sideTool(b, image, name, args) })
	// Tools 1.x, unpacked from another release's package, when told where.
	if dir := os.Getenv("ERA_TOOLS_1"); dir != "" {
		b.Run("tools-1.x", func(b *testing.B) { sideTool(b, image, filepath.Join(dir, name), args) })
	}
}

func sideTool(b *testing.B, image, name string, args []string) {
	user := time.Duration(0)
	for b.Loop() {
		cmd := exec.Command(name, append(slices.Clone(args), "-o", "/dev/null", image)...)
		if err := cmd.Run(); err != nil {
			b.Fatalf("%s: %v (apt-get install thin-provisioning-tools)", name, err)
		}
		user += cmd.ProcessState.UserTime()
	}
	b.ReportMetric(user.Seconds()/float64(b.N), "user-s/op")
}

func changedTo(w io.Writer, since Era) func(v *View) error {
	return func(v *View) error {
		x := NewRangesXML(w)
		if err := v.Changed(Query{Since: since}, x.Range); err != nil {
			return err
		}
		return x.Close()
	}
}

func BenchmarkInvalidateWholeArray(b *testing.B) {
	side(b, bigImage(b, benchBlocks, 128<<20), changedTo(io.Discard, 50), "era_invalidate", "--written-since", "50")
}

func BenchmarkInvalidateWritesetsOnly(b *testing.B) {
	side(b, bigImage(b, benchBlocks, 128<<20), changedTo(io.Discard, 98), "era_invalidate", "--written-since", "98")
}

func BenchmarkDump(b *testing.B) {
	ours := func(v *View) error { return v.Dump(NewXML(io.Discard), DumpOptions{}) }
	side(b, bigImage(b, benchBlocks/8, 128<<20), ours, "era_dump")
}

func BenchmarkDumpLogical(b *testing.B) {
	ours := func(v *View) error { return v.Dump(NewXML(io.Discard), DumpOptions{Logical: true}) }
	side(b, bigImage(b, benchBlocks/8, 128<<20), ours, "era_dump", "--logical")
}
