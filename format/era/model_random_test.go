package era

import (
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// oracle is metadata as plain slices.
type oracle struct {
	h    Header
	sets map[Era][]bool
	eras []Era
}

// randomOracle makes metadata of n data blocks. Changes come in runs, some of
// which end at the edges of array blocks, words and windows.
func randomOracle(r *rand.Rand, n uint32) oracle {
	o := oracle{h: Header{BlockSectors: 8, NrBlocks: n, Era: 20}, sets: map[Era][]bool{}, eras: make([]Era, n)}
	mark := func(size uint32, set func(b uint32)) {
		for range r.IntN(12) {
			edge := []uint32{1, 64, erasPerBlock, bitsPerBlock, windowBitsets * bitsPerBlock}[r.IntN(5)]
			begin := uint32(r.Uint64N(uint64(size)+1)) / edge * edge
			length := []uint32{1, edge, edge - 1, 1 + r.Uint32N(200)}[r.IntN(4)]
			for b := begin; b < min(size, begin+length); b++ {
				set(b)
			}
		}
	}
	oldest := Era(10)
	for range 6 {
		mark(n, func(b uint32) { o.eras[b] = max(o.eras[b], Era(r.IntN(int(oldest)))) })
	}
	for e := oldest; e <= o.h.Era; e += Era(1 + r.IntN(4)) {
		size := n
		if r.IntN(3) == 0 { // resized since
			size = n/2 + r.Uint32N(n+1)
		}
		bits := make([]bool, size)
		mark(size, func(b uint32) { bits[b] = true })
		o.sets[e] = bits
	}
	return o
}

func (o oracle) feed(s Sink) error {
	if err := s.Begin(o.h); err != nil {
		return err
	}
	for e := Era(0); e <= o.h.Era; e++ {
		bits, ok := o.sets[e]
		if !ok {
			continue
		}
		if err := s.BeginWriteset(e, uint32(len(bits))); err != nil {
			return err
		}
		words := make([]uint64, (len(bits)+63)/64)
		for b, set := range bits {
			if set {
				words[b/64] |= 1 << (b % 64)
			}
		}
		if err := s.Bits(words, len(bits)); err != nil {
			return err
		}
		if err := s.EndWriteset(); err != nil {
			return err
		}
	}
	if err := s.BeginArray(); err != nil {
		return err
	}
	if err := s.Eras(o.eras); err != nil {
		return err
	}
	if err := s.EndArray(); err != nil {
		return err
	}
	return s.End()
}

func (o oracle) newest() []Era {
	return (&content{eras: o.eras, writesets: o.sets}).newest()
}

func (o oracle) changed(since Era) []Range {
	var list runsList
	for b, e := range o.newest() {
		if e >= since {
			list.add(uint64(b), uint64(b)+1)
		}
	}
	return list.merged()
}

func TestRandomMetadataAgainstPlainSlices(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	const window = windowBitsets * bitsPerBlock
	sizes := []uint32{1, 63, 64, 65, erasPerBlock, erasPerBlock + 1, bitsPerBlock - 1, bitsPerBlock, bitsPerBlock + 1, 252 * erasPerBlock, 252*erasPerBlock + 1, window + 1}
	for range 20 {
		sizes = append(sizes, 1+r.Uint32N(3*bitsPerBlock))
	}
	for _, n := range sizes {
		o := randomOracle(r, n)
		image := make(memory, (uint64(n)/400+128)*BlockSize)
		if err := o.feed(NewBuilder(image, int64(len(image)))); err != nil {
			t.Fatal(err)
		}
		mustBeSound(t, image)
		v := openBytes(t, image).Live()
		for _, since := range []Era{0, 1, Era(r.IntN(22)), 10, 11, 20, 21} {
			if got, want := ranges(t, v, Query{Since: since}), o.changed(since); !slices.Equal(got, want) {
				t.Fatalf("%d blocks, since %d: %v, want %v", n, since, got, want)
			}
		}
		if !slices.Equal(contentOf(t, v, DumpOptions{Logical: true}).eras, o.newest()) {
			t.Fatalf("%d blocks: logical dump differs", n)
		}
		if n > 4*bitsPerBlock {
			continue
		}
		xml, err := dumpXML(v, DumpOptions{})
		if err != nil {
			t.Fatal(err)
		}
		again := make(memory, len(image))
		if err := Restore(strings.NewReader(xml), again, int64(len(again))); err != nil || !slices.Equal(image, again) {
			t.Fatalf("%d blocks: restored dump differs (%v)", n, err)
		}
		if n%7 == 0 {
			compareInvalidate(t, v, writeFile(t, image), 12)
		}
	}
}

// compareInvalidate compares with era_invalidate 0.9, which lists blocks past
// the end of a device that shrank.
func compareInvalidate(t *testing.T, v *View, image string, since Era) {
	t.Helper()
	theirs := mustTool(t, "era_invalidate", "--written-since", strconv.Itoa(int(since)), image)
	var list runsList
	err := ParseRangesXML(strings.NewReader(theirs), func(r Range) error {
		list.add(uint64(r.Begin), uint64(min(r.End, Block(v.super.NrBlocks))))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := ranges(t, v, Query{Since: since}); !slices.Equal(got, []Range(list)) {
		t.Fatalf("%d blocks: %v, era_invalidate says %v", v.super.NrBlocks, got, list)
	}
}
