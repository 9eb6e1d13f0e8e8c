package cbtmap

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"tidemark/extent"
)

const kib = 1 << 10

// The maps of the driver, and the writes of which they are (README.md beside them).
func TestMapsOfTheDriver(t *testing.T) {
	blocks := func(n ...int64) extent.Set {
		var list []extent.Extent
		for _, b := range n {
			list = append(list, extent.Extent{Off: b * 64 * kib, Len: 64 * kib})
		}
		return extent.NewSet(list...)
	}
	for _, c := range []struct {
		file          string
		number, since int
		want          extent.Set
	}{
		{"cbt1.map", 1, 0, blocks(16, 39, 40)},
		{"cbt1d.map", 1, 0, blocks(16, 39, 40, 48, 80)},
		{"cbt2.map", 2, 0, blocks(16, 39, 40, 32, 48, 80, 128, 129, 130, 131, 132, 136, 140)},
		{"cbt2.map", 2, 1, blocks(32, 48, 80, 128, 129, 130, 131, 132, 136, 140)},
		{"cbt2.map", 2, 2, blocks()},
		{"cbt2.map", 0, 2, blocks()},
	} {
		b, err := os.ReadFile("../../transfer/cowfiles/testdata/cases/blksnap-cbt/" + c.file)
		if err != nil {
			t.Fatal(err)
		}
		i := Info{Device: 64 << 20, Number: c.number}
		if err := i.Since(c.since, ""); err != nil {
			t.Error(err)
		}
		got, err := Changes(bytes.NewReader(b), i, c.since)
		if err != nil || !got.Equal(c.want) {
			t.Errorf("%s since %d: %v, %v, want %v", c.file, c.since, got, err, c.want)
		}
	}
}

func TestNumbersThatTellNothing(t *testing.T) {
	for _, c := range []struct {
		number     int
		generation string
		since      int
		of         string
		ok         bool
	}{
		{4, "", 3, "", true},
		{4, "", 4, "", true},
		{4, "", 5, "", false},         // it began anew
		{4, "a", 3, "b", false},       // another generation
		{4, "a", 3, "a", true},        //
		{255, "a", 254, "a", true},    //
		{255, "b", 255, "b", false},   // the snapshot at which it begins anew is told so
		{255, "b", 254, "a", false},   //
		{1, "b", 255, "b", false},     // the one after it
		{0, "", 255, "", false},       //
		{0, "", 3, "", true},          // judged by the map
		{4, "", 256, "", false},       //
		{4, "", -1, "", false},        //
		{4, "a", 0, "", true},         //
		{255, "a", 0, "a", true},      //
		{255, "new", 0, "old", false}, //
	} {
		err := Info{Device: 1, Number: c.number, Generation: c.generation}.Since(c.since, c.of)
		if (err == nil) != c.ok || err != nil && c.since >= 0 && c.since < 256 && !errors.Is(err, ErrUnknown) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	i := Info{Device: 640 * kib}
	if _, err := Changes(bytes.NewReader(make([]byte, 10)), i, 1); !errors.Is(err, ErrUnknown) {
		t.Errorf("a number above those of the map: %v", err)
	}
	i.Number = 3
	if _, err := Changes(bytes.NewReader([]byte{0, 0, 4, 0, 0, 0, 0, 0, 0, 0}), i, 1); !errors.Is(err, ErrDamaged) {
		t.Errorf("a block above the map's number: %v", err)
	}
	if _, err := Changes(bytes.NewReader(make([]byte, 9)), i, 1); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a map that is cut off: %v", err)
	}
	if _, err := Changes(bytes.NewReader(make([]byte, 11)), i, 1); !errors.Is(err, ErrDamaged) {
		t.Errorf("a map of another device: %v", err)
	}
}

func TestBlockSizesOfTheDriver(t *testing.T) {
	for device, want := range map[int64]int64{
		0: 64 * kib, 128 << 30: 64 * kib, 128<<30 + 512: 128 * kib, 1 << 40: 512 * kib, 128 << 40: 64 << 20, 1 << 50: 64 << 20,
	} {
		if got := BlockSize(device); got != want {
			t.Errorf("%d bytes: %d, want %d", device, got, want)
		}
	}
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 0))
		i := Info{Device: 512 * (1 + rng.Int64N(100<<20/512)), Number: 1 + rng.IntN(255)}
		var list []extent.Extent
		for range rng.IntN(20) {
			off := rng.Int64N(i.Device)
			list = append(list, extent.Extent{Off: off, Len: min(1+rng.Int64N(1<<20), i.Device-off)})
		}
		set := extent.NewSet(list...)
		m, err := New(i)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		for _, number := range []int{i.Number, 0, i.Number - 1} { // the highest wins
			if err := m.Add(number, set); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := m.WriteTo(&b); err != nil {
			t.Fatal(err)
		}
		got, err := Changes(&b, i, i.Number-1)
		if want := set.Align(64*kib, i.Device); err != nil || !got.Equal(want) {
			t.Fatalf("seed %d: %v, %v, want %v", seed, got, err, want)
		}
	}
}

func TestMapsThatFollowEachOther(t *testing.T) {
	for n, want := range map[uint64][2]int{0: {0, 0}, 1: {0, 1}, 255: {0, 255}, 256: {1, 1}, 510: {1, 255}, 511: {2, 1}} {
		if cycle, number := Position(n); int(cycle) != want[0] || number != want[1] {
			t.Errorf("%d: %d, %d, want %v", n, cycle, number, want)
		}
	}
}

func FuzzChanges(f *testing.F) {
	f.Add([]byte{0, 1, 2}, int64(192*kib), int64(0), 2, 1)
	f.Fuzz(func(t *testing.T, b []byte, device, size int64, number, since int) {
		i := Info{Device: device, BlockSize: size, Number: number}
		if device > 1<<40 || size < 0 || size > 1<<40 || i.Since(since, "") != nil {
			return
		}
		set, err := Changes(bytes.NewReader(b), i, since)
		if err == nil && set.End() > device {
			t.Fatalf("%v of %d bytes", set, device)
		}
	})
}
