package datto

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tidemark/extent"
)

const cases = "../../transfer/cowfiles/testdata/cases/"

func unpacked(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open(cases + name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func open(t testing.TB, b []byte) *File {
	t.Helper()
	f, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// memory is a file that grows.
type memory struct{ b []byte }

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if end := int(off) + len(p); end > len(m.b) {
		m.b = append(m.b, make([]byte, end-len(m.b))...)
	}
	return copy(m.b[off:], p), nil
}

func write(t testing.TB, device int64, h Header, blocks ...int64) []byte {
	t.Helper()
	m := &memory{}
	w, err := NewWriter(m, device, h)
	for _, n := range blocks {
		if err != nil {
			break
		}
		var data []byte
		if !h.IndexOnly {
			data = bytes.Repeat([]byte{byte(n)}, BlockSize)
		}
		err = w.Add(n, data)
	}
	if err != nil {
		t.Fatal(err)
	}
	size, err := w.End(func() error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if int(size) > len(m.b) {
		m.b = append(m.b, make([]byte, int(size)-len(m.b))...)
	}
	return m.b[:size]
}

// What the driver closed is read, of every release; what it had open is refused.
func TestFilesOfTheDriver(t *testing.T) {
	for _, c := range []struct {
		file           string
		device         int64
		changed, saved int64
	}{
		{"ext4-16m-reboot/cow.bin.gz", 16 << 20, 60, 0},
		{"tail-24m-plus-3-sectors/cow.bin.gz", 24<<20 + 3*512, 14, 0},
		{"ext4-24m-snapshot-mode/cow.bin.gz", 24 << 20, 62, 62},
		{"headers/synthetic-v0-2016.bin.gz", 24 << 20, 134, 0},
		{"headers/synthetic-2015.bin.gz", 24 << 20, 134, 0},
	} {
		f := open(t, unpacked(t, c.file))
		sum, err := f.Check(c.device)
		if err != nil || sum.Changed != c.changed || sum.Saved != c.saved || sum.Untracked {
			t.Errorf("%s: %+v, %v", c.file, sum, err)
		}
		if _, err := f.Check(c.device + 17<<20); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: of a larger device: %v", c.file, err)
		}
		if at := f.Device(); f.Header().IndexOnly != (at > 0) || at > 0 && (at < c.device || at > c.device+16<<20) {
			t.Errorf("%s: of %d bytes, and it says %d", c.file, c.device, at)
		}
	}
	for _, file := range []string{"dirty-incremental", "dirty-reactivated", "dirty-snapshot"} {
		f := open(t, unpacked(t, "headers/"+file+".bin.gz"))
		if _, err := f.Check(24 << 20); !errors.Is(err, ErrNotClean) {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	for seed := range uint64(100) {
		rng := rand.New(rand.NewPCG(seed, 0))
		device := 512 * (1 + rng.Int64N(3*16<<20/512))
		if seed%5 == 0 {
			device = 16<<20*(1+rng.Int64N(2)) + 512*rng.Int64N(8) // around the edge of a section
		}
		l := layoutOf(device)
		h := Header{IndexOnly: seed%2 == 0, UUID: UUID{1, byte(seed)}, Sequence: seed + 1, Version: seed % 2}
		var blocks []int64
		var want extent.Builder
		for n := range l.blocks {
			if rng.IntN(20) == 0 || n == l.blocks-1 {
				blocks = append(blocks, n)
				want.Add(extent.Extent{Off: n * BlockSize, Len: min(BlockSize, device-n*BlockSize)})
			}
		}
		f := open(t, write(t, device, h, blocks...))
		sum, err := f.Check(device)
		if err != nil || sum.Untracked != (l.blocks > l.entries) {
			t.Fatalf("seed %d: %+v, %v", seed, sum, err)
		}
		set, err := f.Changed(device)
		if err != nil || !set.Equal(want.Set()) {
			t.Fatalf("seed %d: %v, %v, want %v", seed, set, err, want.Set())
		}
		if got := f.Header(); got.UUID != h.UUID || got.Sequence != h.Sequence || !got.Clean {
			t.Errorf("seed %d: %+v", seed, got)
		}
		for e, err := range f.Entries(device) {
			buf := make([]byte, BlockSize)
			if e.Data != 0 && err == nil {
				err = readFull(f.r, buf, e.Data)
			}
			if err != nil || (e.Data != 0) == h.IndexOnly || e.Data != 0 && buf[7] != byte(e.Block) {
				t.Fatalf("seed %d: %+v, %v", seed, e, err)
			}
		}
	}
}

func TestFaultsAreNamed(t *testing.T) {
	const device = 1 << 20
	snapshot := write(t, device, Header{Version: 1}, 3, 7)
	list := write(t, device, Header{IndexOnly: true, Version: 1}, 3, 7)
	for name, c := range map[string]struct {
		of   []byte
		at   int
		to   byte
		is   error
		want string
	}{
		"magic":                  {list, 0, 1, ErrNotCOW, "magic"},
		"flags":                  {list, 4, 0x83, ErrNewer, "flags 0x80"},
		"version":                {list, 48, 9, ErrNewer, "version 9"},
		"not closed":             {list, 4, 2, ErrNotClean, "not closed"},
		"behind the device":      {list, BlockSize + 8*256, 1, ErrDamaged, "entry of block 256 at byte 6144: the COW file is damaged: the device has 256 blocks"},
		"value of a list":        {list, BlockSize + 8*3, 5, ErrDamaged, "its value is 5"},
		"count":                  {list, BlockSize + 8*4, 1, ErrDamaged, "its index has 3 changed blocks, and its header says 2"},
		"value of a snapshot":    {snapshot, BlockSize + 8*3, 1, ErrDamaged, "block 1 of the file, and those are 9 to 11"},
		"data behind the end":    {snapshot, BlockSize + 8*3, 11, ErrDamaged, "block 11 of the file"},
		"data of two":            {snapshot, BlockSize + 8*3, 10, ErrDamaged, "entry of block 7 at byte 4152"},
		"a snapshot as a list":   {snapshot, 4, 3, ErrDamaged, "the index of a device of 1048576 bytes ends at byte 36864"},
		"data free, as it seems": {snapshot, 8, 10, ErrDamaged, "block 10 of the file"},
	} {
		b := slices.Clone(c.of)
		b[c.at] = c.to
		f, err := Open(bytes.NewReader(b), int64(len(b)))
		if err == nil {
			_, err = f.Check(device)
		}
		if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	for _, b := range [][]byte{snapshot, list} {
		for size := 0; size < len(b); size += 64 {
			f, err := Open(bytes.NewReader(b), int64(size))
			if err == nil {
				_, err = f.Check(device)
			}
			if err == nil {
				t.Fatalf("%d of %d bytes pass", size, len(b))
			}
		}
	}
}

// The driver's own answers, and what it says about a file that is to be merged.
func TestAnswersOfTheDriver(t *testing.T) {
	f := open(t, unpacked(t, "ext4-16m-reboot/cow.bin.gz"))
	for file, want := range map[string]string{
		"info-snap2.json": "", "info-mounted.json": "state 2", "info-before-poweroff.json": "state 0", "info-unverified.json": "state 4",
	} {
		text, err := os.ReadFile(filepath.Join(cases, "ext4-16m-reboot", file))
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range [][]byte{text, bytes.Replace(text, []byte("13d\",\n"), []byte("13d\"\n"), 1)} { // as 0.10.7 does
			info, err := ParseInfo(bytes.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			d, err := info.Device(3)
			if err == nil {
				err = f.Precedes(d)
			}
			if (err == nil) != (want == "") || err != nil && (!errors.Is(err, ErrOther) || !strings.Contains(err.Error(), want)) {
				t.Errorf("%s: %v, want %q", file, err, want)
			}
		}
	}
	sound := DeviceInfo{UUID: f.Header().UUID.String(), Sequence: 2, State: StateSnapshot}
	for want, change := range map[string]func(d *DeviceInfo){
		"which does not immediately go before the snapshot's 3": func(d *DeviceInfo) { d.Sequence = 3 },
		"its UUID is": func(d *DeviceInfo) { d.UUID = strings.Repeat("0", 32) },
		"(error -27)": func(d *DeviceInfo) { d.Error = -27 },
	} {
		d := sound
		change(&d)
		if err := f.Precedes(d); !errors.Is(err, ErrOther) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	old := open(t, unpacked(t, "headers/synthetic-2015.bin.gz"))
	if err := old.Precedes(sound); err != nil {
		t.Error(err)
	}
	for _, text := range []string{"", "{", "[]", `{"devices": 3}`, strings.Repeat(" ", infoLimit+1)} {
		if _, err := ParseInfo(strings.NewReader(text)); err == nil {
			t.Errorf("%.10q passes", text)
		}
	}
}

// What passes is written again to the same index.
func FuzzCheck(f *testing.F) {
	f.Add(write(f, 1<<20, Header{Version: 1}, 3, 7), int64(1<<20))
	f.Add(write(f, 1<<20, Header{IndexOnly: true}, 3, 255), int64(1<<20))
	f.Fuzz(func(t *testing.T, b []byte, device int64) {
		c, err := Open(bytes.NewReader(b), int64(len(b)))
		if err != nil || device > 1<<30 {
			return
		}
		sum, err := c.Check(device)
		if err != nil {
			return
		}
		var blocks []int64
		for e, err := range c.Entries(device) {
			if err != nil || e.Data+BlockSize > int64(len(b)) || e.Block*BlockSize >= device {
				t.Fatalf("%+v, %v passed", e, err)
			}
			blocks = append(blocks, e.Block)
		}
		again := open(t, write(t, device, Header{IndexOnly: true, Version: 1}, blocks...))
		want, err := c.Changed(device)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := again.Changed(device); err != nil || !got.Equal(want) || sum.Changed != int64(len(blocks)) {
			t.Fatalf("%v, %v, want %v", got, err, want)
		}
	})
}

func TestUUIDsAreReadAsTheyAreWritten(t *testing.T) {
	u := UUID{1, 2, 15: 0xfe}
	var back UUID
	if err := back.UnmarshalText([]byte(u.String())); err != nil || back != u {
		t.Errorf("%v, %v", back, err)
	}
	for _, bad := range []string{"", "0102", u.String() + "00", "x" + u.String()[1:]} {
		if err := back.UnmarshalText([]byte(bad)); err == nil || back != u {
			t.Errorf("%q: %v, %v", bad, back, err)
		}
	}
}
