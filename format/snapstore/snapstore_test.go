package snapstore

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
	"github.com/klauspost/compress/zstd"
)

// memory is a device of fixed size.
type memory []byte

func (m memory) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(m)) {
		return 0, os.ErrInvalid
	}
	return copy(m[off:], p), nil
}

// write makes a store of exceptions with random data.
func write(t testing.TB, size, chunk int64, olds ...uint64) []byte {
	t.Helper()
	m := make(memory, size)
	w, err := NewWriter(m, size, chunk)
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte{0xd5}, int(chunk))
	for _, old := range olds {
		if err := w.Add(old, data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.End(func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	return m
}

func open(t testing.TB, b []byte) *Store {
	t.Helper()
	s, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func all(t testing.TB, s *Store) (list []Exception) {
	t.Helper()
	for e, err := range s.Exceptions() {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, e)
	}
	return list
}

// The kernel's own word on its stores: number of exceptions, chunk size, what it counts as used.
func TestStoresOfTheKernelAreReadAsItReadsThem(t *testing.T) {
	files, err := filepath.Glob("../../transfer/stores/testdata/cases/*/meta.json")
	if err != nil || len(files) == 0 {
		t.Fatal("no cases", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(filepath.Dir(file)), func(t *testing.T) {
			var meta struct {
				Origin int64 `json:"origin_bytes"`
				State  struct {
					State        string
					ChunkSectors int64 `json:"chunk_sectors"`
					Entries      int64
					StatusUsage  string `json:"status_usage"`
				} `json:"store_state"`
			}
			text, err := os.ReadFile(file)
			if err == nil {
				err = json.Unmarshal(text, &meta)
			}
			if err != nil {
				t.Fatal(err)
			}
			image := unzstd(t, filepath.Join(filepath.Dir(file), "cow.img.zst"))
			s := open(t, image)
			sum, err := s.Check(CheckOptions{OriginSize: meta.Origin})
			if err != nil {
				t.Fatal(err)
			}
			var used, total, metadata int64
			if _, err := fmt.Sscanf(meta.State.StatusUsage, "%d/%d %d", &used, &total, &metadata); err != nil {
				t.Fatal(err)
			}
			if sum.Exceptions != meta.State.Entries || s.ChunkSize() != meta.State.ChunkSectors*SectorSize ||
				sum.Used != used*SectorSize || s.Size() != total*SectorSize || (1+sum.Areas)*s.ChunkSize() != metadata*SectorSize {
				t.Errorf("%+v, chunks of %d; want %+v", sum, s.ChunkSize(), meta.State)
			}
			if valid := s.Valid(); (valid == nil) != (meta.State.State == "valid") || valid != nil && !errors.Is(valid, ErrOverflowed) {
				t.Errorf("%v, want %s", valid, meta.State.State)
			}
			if n := int64(len(all(t, s))); n != sum.Exceptions {
				t.Errorf("%d exceptions, want %d", n, sum.Exceptions)
			}
		})
	}
}

func unzstd(t testing.TB, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	d, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if b, err = d.DecodeAll(b, nil); err != nil {
		t.Fatal(err)
	}
	return b
}

// What is written is read again, for every number of exceptions around the ends of areas.
func TestWhatIsWrittenIsRead(t *testing.T) {
	const chunk = 512 // 32 exceptions an area
	for n := range uint64(70) {
		var olds []uint64
		for i := range n {
			olds = append(olds, (i*37)%101)
		}
		size := SizeFor(int64(n), chunk)
		s := open(t, write(t, size, chunk, olds...))
		sum, err := s.Check(CheckOptions{OriginSize: 101 * chunk})
		if err != nil || sum.Exceptions != int64(n) {
			t.Fatalf("%d: %+v, %v", n, sum, err)
		}
		for i, e := range all(t, s) {
			if e.Old != olds[i] {
				t.Errorf("%d: %v, want chunk %d", i, e, olds[i])
			}
		}
		if sum.Free != 0 {
			t.Errorf("%d: %d bytes are free where no exception fits any more", n, sum.Free)
		}
		w, err := NewWriter(make(memory, size-chunk), size-chunk, chunk)
		if err != nil {
			continue // not even the first area fits
		}
		for _, old := range olds {
			if err = w.Add(old, nil); err != nil {
				break
			}
		}
		if !errors.Is(err, ErrFull) {
			t.Errorf("%d exceptions fit in %d bytes: %v", n, size-chunk, err)
		}
	}
}

// Until End a store is none, and what was one before is none either.
func TestAStoreThatIsNotWholeIsNone(t *testing.T) {
	m := memory(write(t, 1<<20, 4096, 1, 2, 3))
	w, err := NewWriter(m, 1<<20, 4096)
	if err == nil {
		err = w.Add(7, make([]byte, 4096))
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(bytes.NewReader(m), 1<<20); !errors.Is(err, ErrNotStore) {
		t.Error(err)
	}
}

func TestFaultsAreFound(t *testing.T) {
	const chunk, size = 4096, 64 * 4096
	sound := write(t, size, chunk, 10, 11, 12, 30)
	entry := func(i int) int { return chunk + 16*i }
	for name, c := range map[string]struct {
		at   int
		to   byte
		want string
	}{
		"two of one chunk":       {entry(3), 11, "chunk 11 of the origin has another exception"},
		"one data chunk twice":   {entry(3) + 8, 2, "data chunk 2 is that of another"},
		"data chunk left out":    {entry(3) + 8, 9, "the 4 exceptions have no more than 5"},
		"an area as data":        {entry(2) + 8, 1, "data chunk 1 is one of exceptions"},
		"data behind the end":    {entry(2) + 8, 64, "lies behind the end of the store"},
		"data far behind":        {entry(2) + 15, 0x80, "lies behind the end of the store"},
		"origin too small":       {entry(3), 200, "chunk 200 lies behind the end of the origin, which has 409600 bytes"},
		"no such origin":         {entry(3) + 7, 0x80, "lies behind the end of the origin"},
		"a hole in the list":     {entry(1) + 8, 0, "behind the end of the list"},
		"behind the list's end":  {entry(9), 5, "behind the end of the list"},
		"order of two exchanged": {entry(3) + 8, 4, "data chunk 4 is that of another"},
	} {
		b := bytes.Clone(sound)
		b[c.at] = c.to
		_, err := open(t, b).Check(CheckOptions{OriginSize: 100 * chunk})
		if !errors.Is(err, ErrDamaged) || !bytes.Contains([]byte(err.Error()), []byte(c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	out := bytes.Clone(sound) // an older kernel may have ended two copies in another order
	out[entry(2)+8], out[entry(3)+8] = 5, 4
	if _, err := open(t, out).Check(CheckOptions{}); err != nil {
		t.Error(err)
	}
}

// A check that is to tell all faults goes on behind each, also where the list cannot be followed.
func TestEveryFaultIsReported(t *testing.T) {
	const chunk, size = 512, 80 * 512
	var olds []uint64
	for i := range uint64(40) { // 32 in the first area, at byte 512; 8 in the second, at byte 17408
		olds = append(olds, i)
	}
	entry := func(i int) int { return chunk + 16*i }
	for name, c := range map[string]struct {
		damage func(b []byte) []byte
		want   []int64
	}{
		"twice, and an area as data": {func(b []byte) []byte {
			b[entry(1)], b[entry(2)+8] = 10, 1
			return b
		}, []int64{int64(entry(2)), int64(entry(10))}},
		"twice, and cut off": {func(b []byte) []byte {
			b[entry(5)] = 6
			return b[:34*chunk]
		}, []int64{17408, int64(entry(6))}},
		"twice, data far behind, and a hole before the last ones": {func(b []byte) []byte {
			b[entry(5)], b[entry(7)+15] = 6, 0x80
			clear(b[entry(30):entry(31)])
			return b
		}, []int64{int64(entry(7)), int64(entry(31)), int64(entry(6))}},
		"no data chunk, and what follows": {func(b []byte) []byte {
			clear(b[entry(30)+8 : entry(31)])
			return b
		}, []int64{int64(entry(30)), int64(entry(31))}},
	} {
		b := c.damage(write(t, size, chunk, olds...))
		var at []int64
		if _, err := open(t, b).Check(CheckOptions{Faults: func(f *Fault) { at = append(at, f.Offset) }}); err != nil || !slices.Equal(at, c.want) {
			t.Errorf("%s: faults at %d, %v; want %d", name, at, err, c.want)
		}
		if _, err := open(t, b).Check(CheckOptions{}); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: the first fault: %v", name, err)
		}
	}
}

// However many numbers there are, and however they lie, those that are there twice are found.
func TestNumbersThatAreThereTwiceAreFound(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, span := range []uint64{3, 1 << 20, 1 << 40, math.MaxUint64} {
		for _, count := range []int{0, 1, 2, batchSize - 1, batchSize, 3*batchSize + 5} {
			seen, want := map[uint64]bool{}, roaring64.New()
			var n numbers
			for range count {
				v := rng.Uint64N(span)
				if seen[v] {
					want.Add(v)
				}
				seen[v] = true
				n.add(v)
			}
			if got := n.twice(); !got.Equals(want) {
				t.Errorf("%d numbers below %d: %d are there twice, want %d", count, span, got.GetCardinality(), want.GetCardinality())
			}
		}
	}
}

// A store that is cut off anywhere in its list is refused.
func TestACutStoreIsRefused(t *testing.T) {
	const chunk = 512
	var olds []uint64
	for i := range uint64(64) {
		olds = append(olds, i)
	}
	b := write(t, SizeFor(64, chunk), chunk, olds...)
	for size := range int64(len(b)) {
		s, err := Open(bytes.NewReader(b[:size]), size)
		if err == nil {
			_, err = s.Check(CheckOptions{})
		}
		if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNotStore) {
			t.Fatalf("%d bytes: %v", size, err)
		}
	}
	if _, err := open(t, b).Check(CheckOptions{}); err != nil {
		t.Error(err)
	}
}

func TestHeadersAreToldApart(t *testing.T) {
	sound := write(t, 16<<10, 4096, 1)
	for name, c := range map[string]struct {
		at   int
		to   byte
		want error
	}{
		"magic": {0, 'X', ErrNotStore}, "version 2": {8, 2, ErrNewer}, "version 0": {8, 0, ErrDamaged},
		"chunks of 0": {12, 0, ErrDamaged}, "of 12 sectors": {12, 12, ErrDamaged}, "of 2 GiB": {14, 0x40, ErrDamaged},
		"valid of 2": {4, 2, ErrDamaged},
	} {
		b := bytes.Clone(sound)
		b[c.at] = c.to
		if _, err := Open(bytes.NewReader(b), int64(len(b))); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	b := bytes.Clone(sound)
	b[4] = 0
	if err := open(t, b).Valid(); !errors.Is(err, ErrInvalid) || errors.Is(err, ErrOverflowed) {
		t.Error(err)
	}
}

// What a fuzzer finds sound is written again as it was read.
func FuzzCheck(f *testing.F) {
	f.Add(write(f, SizeFor(40, 512), 512, 3, 1, 2))
	f.Add(write(f, 16<<10, 4096, 1, 2))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		if _, err := s.Check(CheckOptions{OriginSize: 1 << 40}); err != nil || s.Valid() != nil {
			return
		}
		seen := map[uint64]bool{}
		var olds []uint64
		for e, err := range s.Exceptions() {
			if err != nil {
				t.Fatal("sound, and cannot be read: ", err)
			}
			if at := int64(e.New+1) * s.ChunkSize(); seen[e.Old] || at > int64(len(b)) {
				t.Fatalf("%v of %d bytes passed", e, len(b))
			}
			seen[e.Old] = true
			olds = append(olds, e.Old)
		}
		again := open(t, write(t, SizeFor(int64(len(olds)), s.ChunkSize()), s.ChunkSize(), olds...))
		if got := all(t, again); len(got) != len(olds) {
			t.Fatalf("%d exceptions, want %d", len(got), len(olds))
		}
	})
}

// Whatever bit of header or list flips, the store is refused, or its list is one that a kernel
// could have made: then apply follows it.
func TestEveryFlippedBitIsRefusedOrFollowed(t *testing.T) {
	const chunk = 512
	var olds []uint64
	for i := range uint64(40) {
		olds = append(olds, i)
	}
	b := write(t, SizeFor(40, chunk), chunk, olds...)
	for _, area := range []int{0, chunk, chunk * 34} {
		for at := area; at < area+chunk; at++ {
			for bit := range 8 {
				b[at] ^= 1 << bit
				s, err := Open(bytes.NewReader(b), int64(len(b)))
				if err == nil {
					_, err = s.Check(CheckOptions{OriginSize: 64 * chunk})
				}
				if err == nil {
					follows(t, s, at)
				}
				b[at] ^= 1 << bit
			}
		}
	}
}

// follows checks that no chunk is meant twice, and that all are where they can be.
func follows(t *testing.T, s *Store, at int) {
	t.Helper()
	old, data := map[uint64]bool{}, map[uint64]bool{}
	list := all(t, s)
	for _, e := range list {
		if old[e.Old] || data[e.New] || e.Old >= 64 || int64(e.New) > s.data(int64(len(list))-1) {
			t.Fatalf("byte %d: %v passed", at, e)
		}
		old[e.Old], data[e.New] = true, true
	}
}
