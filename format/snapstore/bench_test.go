package snapstore

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// large makes a sparse file with a store of n exceptions at random chunks of an origin of that
// many chunks, all areas and no data.
func large(tb testing.TB, n, origin int64) *os.File {
	tb.Helper()
	const chunk = 4096
	f, err := os.Create(filepath.Join(tb.TempDir(), "store"))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { f.Close() })
	size := SizeFor(n, chunk)
	if err := f.Truncate(size); err != nil {
		tb.Fatal(err)
	}
	s := Store{size: size, chunk: chunk}
	random := rand.New(rand.NewPCG(1, 2))
	step := uint64(origin / n)
	area := make([]byte, chunk)
	order := random.Perm(int(n))
	for i := range n {
		at := i % s.perArea() * exceptionSize
		binary.LittleEndian.PutUint64(area[at:], uint64(order[i])*step+random.Uint64N(step))
		binary.LittleEndian.PutUint64(area[at+8:], uint64(s.data(i)))
		if i%s.perArea() == s.perArea()-1 || i == n-1 {
			if _, err := f.WriteAt(area, s.area(i/s.perArea())*chunk); err != nil {
				tb.Fatal(err)
			}
			clear(area)
		}
	}
	header := make([]byte, SectorSize)
	for i, v := range []uint32{magic, 1, version, chunk / SectorSize} {
		binary.LittleEndian.PutUint32(header[4*i:], v)
	}
	if _, err := f.WriteAt(header, 0); err != nil {
		tb.Fatal(err)
	}
	return f
}

func BenchmarkCheck(b *testing.B) {
	const n = 10_000_000
	f := large(b, n, 4<<30) // 16 TiB
	info, err := f.Stat()
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		s, err := Open(f, info.Size())
		if err != nil {
			b.Fatal(err)
		}
		if sum, err := s.Check(CheckOptions{}); err != nil || sum.Exceptions != n {
			b.Fatal(sum, err)
		}
	}
}
