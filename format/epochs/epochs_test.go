package epochs

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"

	"tidemark/extent"
)

func example() File {
	return File{
		Generation: "0123456789abcdef", From: 3, To: 5, DiskSize: 1<<20 + 512, Granularity: 4096,
		Set: extent.NewSet(extent.Extent{Off: 0, Len: 4096}, extent.Extent{Off: 65536, Len: 8192}, extent.Extent{Off: 1 << 20, Len: 512}),
	}
}

func encode(t testing.TB, f File) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Encode(&b, f); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func decode(b []byte) (File, error) { return Decode(bytes.NewReader(b), int64(len(b))) }

func equal(a, b File) bool {
	sets := a.Set.Equal(b.Set)
	a.Set, b.Set = extent.Set{}, extent.Set{}
	return sets && a.Generation == b.Generation && a.From == b.From && a.To == b.To &&
		a.DiskSize == b.DiskSize && a.Granularity == b.Granularity
}

func drawFile(t *rapid.T) File {
	g := int64(512) << rapid.IntRange(0, 21).Draw(t, "granularity")
	blocks := rapid.Int64Range(1, 2000).Draw(t, "blocks")
	size := blocks*g - rapid.Int64Range(0, g-1).Draw(t, "short")
	exts := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) extent.Extent {
		off := rapid.Int64Range(0, blocks-1).Draw(t, "off")
		return extent.Extent{Off: off * g, Len: rapid.Int64Range(1, blocks-off).Draw(t, "len") * g}
	}), 0, 50).Draw(t, "extents")
	from := rapid.Uint64Max(math.MaxUint64-1).Draw(t, "from")
	return File{
		Generation: hex.EncodeToString(binary.BigEndian.AppendUint64(nil, rapid.Uint64().Draw(t, "generation"))),
		From:       from, To: rapid.Uint64Min(from+1).Draw(t, "to"),
		DiskSize: size, Granularity: g,
		Set: extent.NewSet(exts...).Clip(extent.Extent{Len: size}),
	}
}

func TestWhatIsWrittenIsReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := drawFile(t)
		var b bytes.Buffer
		if err := Encode(&b, f); err != nil {
			t.Fatal(err)
		}
		got, err := decode(b.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if !equal(got, f) {
			t.Fatalf("got %+v, want %+v", got, f)
		}
		if faults := Check(bytes.NewReader(b.Bytes()), int64(b.Len())); faults != nil {
			t.Fatalf("the checker finds %v", faults)
		}
	})
}

func TestTheLargestDiskFits(t *testing.T) {
	f := example()
	f.DiskSize, f.Granularity = math.MaxInt64, MinGranularity
	last := f.DiskSize / 512 * 512
	f.Set = extent.NewSet(extent.Extent{Off: 0, Len: 512}, extent.Extent{Off: last, Len: f.DiskSize - last})
	got, err := decode(encode(t, f))
	if err != nil || !equal(got, f) {
		t.Fatalf("got %+v, %v, want %+v", got, err, f)
	}
}

func TestTheDumpInTestdataIsTheFormat(t *testing.T) {
	text, err := os.ReadFile("testdata/example.hex")
	if err != nil {
		t.Fatal(err)
	}
	var digits strings.Builder
	for line := range strings.Lines(string(text)) {
		code, _, _ := strings.Cut(line, "#")
		digits.WriteString(strings.Join(strings.Fields(code), ""))
	}
	b, err := hex.DecodeString(digits.String())
	if err != nil {
		t.Fatal(err)
	}
	got, err := decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if !equal(got, example()) {
		t.Fatalf("got %+v, want %+v", got, example())
	}
	if ours := encode(t, example()); !bytes.Equal(ours[:64], b[:64]) {
		t.Errorf("the writer's header is\n%s", hex.Dump(ours))
	}
}

func TestEveryCutAndEveryFlippedBitIsRefused(t *testing.T) {
	good := encode(t, example())
	for n := range good {
		_, err := decode(good[:n])
		if want := ErrDamaged; n > 0 && !errors.Is(err, want) {
			t.Errorf("cut at %d: %v", n, err)
		}
		if n == 0 && !errors.Is(err, ErrNotEpochs) {
			t.Errorf("an empty file: %v", err)
		}
	}
	for bit := range len(good) * 8 {
		bad := bytes.Clone(good)
		bad[bit/8] ^= 1 << (bit % 8)
		want := ErrDamaged
		if bit/8 < len(magic) {
			want = ErrNotEpochs
		}
		if _, err := decode(bad); !errors.Is(err, want) {
			t.Errorf("bit %d: %v, want %v", bit, err, want)
		}
		if len(Check(bytes.NewReader(bad), int64(len(bad)))) == 0 {
			t.Errorf("bit %d: the checker finds nothing", bit)
		}
	}
	if _, err := decode(append(bytes.Clone(good), 0)); !errors.Is(err, ErrDamaged) {
		t.Errorf("a byte too many: %v", err)
	}
}

// forge returns a sealed file with the header of the example after change, and
// raw as payload before compression.
func forge(t testing.TB, raw []byte, change func(h *header)) []byte {
	t.Helper()
	var h header
	copy(h[:], encode(t, example()))
	var stored []byte
	if raw != nil {
		z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		stored = z.EncodeAll(raw, nil)
	}
	h.setU64(64, uint64(len(raw)))
	h.setU64(72, uint64(len(stored)))
	change(&h)
	h.seal(stored)
	return append(h[:], stored...)
}

func TestHostileInputsAreRefusedWithAReason(t *testing.T) {
	set := func(off int, v uint64) func(*header) { return func(h *header) { h.setU64(off, v) } }
	good := []byte{0, 1, 15, 2, 0xee, 0x01, 1}
	tests := []struct {
		name   string
		raw    []byte
		change func(*header)
		want   error
		says   string
	}{
		{"a later version", good, func(h *header) { h.setU32(8, 2) }, ErrNewer, "version 2"},
		{"version zero", good, func(h *header) { h.setU32(8, 0) }, ErrDamaged, "version 0"},
		{"unknown flags", good, func(h *header) { h.setU32(12, 8) }, ErrNewer, "flags 0x8"},
		{"no epochs", good, set(32, 3), ErrDamaged, "byte 24"},
		{"epochs backwards", good, set(32, 1), ErrDamaged, "byte 24"},
		{"no disk", good, set(40, 0), ErrDamaged, "byte 40"},
		{"a disk of more than 2^63-1", good, set(40, 1<<63), ErrDamaged, "byte 40"},
		{"granularity zero", good, set(48, 0), ErrDamaged, "byte 48"},
		{"granularity no power of two", good, set(48, 4097), ErrDamaged, "byte 48"},
		{"granularity huge", good, set(48, 1<<62), ErrDamaged, "byte 48"},
		{"more extents than fit the disk", good, set(56, 200), ErrDamaged, "byte 56"},
		{"more extents than allowed", good, set(56, math.MaxUint64/2), ErrDamaged, "byte 56"},
		{"raw length too small", good, set(64, 5), ErrDamaged, "byte 64"},
		{"raw length too large", good, set(64, 55), ErrDamaged, "byte 64"},
		{"raw length off by one", good, set(64, 8), ErrDamaged, "the header says 8"},
		{"fewer extents than promised", good, set(56, 2), ErrDamaged, "more follows"},
		{"payload for nothing", good, func(h *header) { h.setU64(56, 0); h.setU64(64, 0) }, ErrDamaged, "byte 72"},
		{"nothing for extents", nil, func(h *header) { h.setU64(64, 7) }, ErrDamaged, "byte 72"},
		{"number cut", good[:5], func(h *header) { h.setU64(64, 7) }, ErrDamaged, "unexpected EOF"},
		{"extent behind the disk", []byte{0, 1, 15, 2, 0xef, 0x01, 1}, set(56, 3), ErrDamaged, "extent 2"},
		{"length behind the disk", []byte{0, 1, 15, 2, 0xee, 0x01, 2}, set(56, 3), ErrDamaged, "extent 2"},
		{"sum that wraps", append([]byte{0, 1, 15, 2}, bytes.Repeat([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, 2)...), set(56, 3), ErrDamaged, "extent 2"},
		{"number of 64 bits", append([]byte{0, 1, 15, 2, 1}, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01), set(56, 3), ErrDamaged, "63 bits"},
		{"extents that touch", []byte{0, 1, 0, 2, 0xee, 0x01, 1}, set(56, 3), ErrDamaged, "extent 1"},
		{"empty extent", []byte{0, 1, 15, 0, 0xee, 0x01, 1}, set(56, 3), ErrDamaged, "extent 1"},
		{"number longer than needed", []byte{0, 0x81, 0x00, 15, 2, 1, 1}, set(56, 3), ErrDamaged, "longer form"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := forge(t, tt.raw, tt.change)
			_, err := decode(b)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want %v saying %q", err, tt.want, tt.says)
			}
			if faults := Check(bytes.NewReader(b), int64(len(b))); len(faults) == 0 || faults[0].Error() != err.Error() {
				t.Errorf("the checker finds %v", faults)
			}
		})
	}
	if _, err := decode(forge(t, good, func(*header) {})); err != nil {
		t.Errorf("the payload that all others are made from: %v", err)
	}
}

func TestPayloadThatIsNotZstandardIsDamaged(t *testing.T) {
	b := encode(t, example())
	var h header
	copy(h[:], b)
	copy(b[headerSize:], "garbage")
	h.seal(b[headerSize:])
	copy(b, h[:])
	if _, err := decode(b); !errors.Is(err, ErrDamaged) {
		t.Errorf("got %v", err)
	}
}

func TestSmallFilesCannotAskForMuchMemory(t *testing.T) {
	b := forge(t, []byte{0, 1}, func(h *header) {
		h.setU64(40, math.MaxInt64)
		h.setU64(56, MaxExtents)
		h.setU64(64, minVarints*MaxExtents)
	})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := decode(b)
	runtime.ReadMemStats(&after)
	if !errors.Is(err, ErrDamaged) {
		t.Errorf("got %v", err)
	}
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 16<<20 {
		t.Errorf("%d bytes allocated for a file of %d", grown, len(b))
	}
}

type failingReader struct {
	*bytes.Reader
	good int
}

var errRead = errors.New("input/output error")

func (r *failingReader) ReadAt(p []byte, off int64) (int, error) {
	if r.good--; r.good < 0 {
		return 0, errRead
	}
	return r.Reader.ReadAt(p, off)
}

func TestAReadErrorIsNotCalledDamage(t *testing.T) {
	b := encode(t, example())
	for good := range 3 {
		_, err := Decode(&failingReader{bytes.NewReader(b), good}, int64(len(b)))
		if !errors.Is(err, errRead) || errors.Is(err, ErrDamaged) {
			t.Errorf("read %d fails: %v", good, err)
		}
	}
}

func TestTheWriterRefusesWhatTheFormatCannotHold(t *testing.T) {
	tests := map[string]func(*File){
		"short generation":      func(f *File) { f.Generation = "01" },
		"generation in capital": func(f *File) { f.Generation = "0123456789ABCDEF" },
		"generation no hex":     func(f *File) { f.Generation = "0123456789abcdeg" },
		"no epochs":             func(f *File) { f.To = f.From },
		"no disk":               func(f *File) { f.DiskSize = 0 },
		"granularity":           func(f *File) { f.Granularity = 1000 },
		"negative granularity":  func(f *File) { f.Granularity = math.MinInt64 },
		"extent not aligned":    func(f *File) { f.Set = extent.NewSet(extent.Extent{Off: 1, Len: 4096}) },
		"end not aligned":       func(f *File) { f.Set = extent.NewSet(extent.Extent{Off: 0, Len: 4095}) },
		"behind the disk":       func(f *File) { f.Set = extent.NewSet(extent.Extent{Off: 1 << 20, Len: 4096}) },
	}
	for name, change := range tests {
		f := example()
		change(&f)
		var b bytes.Buffer
		if err := Encode(&b, f); err == nil || b.Len() > 0 {
			t.Errorf("%s: error %v, %d bytes written", name, err, b.Len())
		}
	}
	if err := Encode(&shortWriter{n: headerSize}, example()); !errors.Is(err, errRead) {
		t.Errorf("a failing writer: %v", err)
	}
}

type shortWriter struct{ n int }

func (w *shortWriter) Write(p []byte) (int, error) {
	if w.n -= len(p); w.n < 0 {
		return 0, errRead
	}
	return len(p), nil
}

// FuzzWhatParsesReencodes seals the input first, so that the fuzzer gets past
// the checksum, and wraps plain payload bytes as well.
func FuzzWhatParsesReencodes(f *testing.F) {
	f.Add(encode(f, example()), false)
	f.Add(forge(f, []byte{0, 1, 15, 2, 0xee, 0x01, 1}, func(*header) {})[:headerSize], true)
	f.Fuzz(func(t *testing.T, b []byte, compress bool) {
		if len(b) >= headerSize {
			b = sealed(t, b, compress)
		}
		file, err := decode(b)
		faults := Check(bytes.NewReader(b), int64(len(b)))
		if (err == nil) != (len(faults) == 0) {
			t.Fatalf("the reader says %v, the checker %v", err, faults)
		}
		if err != nil {
			return
		}
		again, err := decode(encode(t, file))
		if err != nil || !equal(again, file) {
			t.Fatalf("%+v became %+v, %v", file, again, err)
		}
	})
}

func sealed(t testing.TB, b []byte, compress bool) []byte {
	var h header
	copy(h[:], b)
	stored := b[headerSize:]
	if compress {
		z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		h.setU64(64, uint64(len(stored)))
		stored = z.EncodeAll(stored, nil)
	}
	h.setU64(72, uint64(len(stored)))
	h.seal(stored)
	return append(h[:], stored...)
}
