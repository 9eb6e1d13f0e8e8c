package era

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"tidemark/format/pdata"
)

// fuzzCases are the images FuzzMetadata patches: small ones, with a held
// snapshot, a power cut, archived writesets, many writesets.
func fuzzCases() []string {
	return []string{"c02-bs4096-256m.snap-era3", "c14-crash-reopen.crash", "c08-fresh.three-cycles", "c06-bs1000-odd.clean-with-snap", "c17-300-writesets-restored09"}
}

// kinds finds the type of each block in use by its checksum.
func kindsOf(image []byte) map[int]pdata.Kind {
	kinds := map[int]pdata.Kind{}
	for b := 0; (b+1)*BlockSize <= len(image); b++ {
		block := image[b*BlockSize : (b+1)*BlockSize]
		for k := pdata.EraSuper; k <= pdata.Bits; k++ {
			if ours.Verify(Addr(b), k, block) == nil {
				kinds[b] = k
			}
		}
	}
	return kinds
}

// FuzzMetadata patches real metadata and makes the checksums right again, so
// that the structure is what is tested. A patch is five bytes: the block, an
// offset below 4096 (two bytes), how many zero bytes go before it, and a value.
func FuzzMetadata(f *testing.F) {
	var images [][]byte
	var blocks [][]int
	for _, name := range fuzzCases() {
		image := theCaseNamed(f, name).image
		images, blocks = append(images, image), append(blocks, inUse(f, image))
	}
	for i := range images {
		f.Add(uint8(i), []byte{})
		f.Add(uint8(i), []byte{1, 0, 16, 0, 255, 2, 0, 16, 1, 0})
		f.Add(uint8(i), []byte{0, 0, 184, 0, 1, 0, 0, 192, 7, 5})
	}
	f.Fuzz(func(t *testing.T, which uint8, patches []byte) {
		i := int(which) % len(images)
		image := bytes.Clone(images[i])
		kinds := kindsOf(image)
		for ; len(patches) >= 5; patches = patches[5:] {
			b := blocks[i][int(patches[0])%len(blocks[i])]
			block := image[b*BlockSize : (b+1)*BlockSize]
			at := (int(patches[1])<<8 | int(patches[2])) % BlockSize
			clear(block[max(0, at-int(patches[3]&7)):at])
			block[at] = patches[4]
			le.PutUint32(block, pdata.Checksum(kinds[b], block))
		}
		exercise(t, image)
	})
}

// FuzzImage gives raw bytes to everything that reads metadata.
func FuzzImage(f *testing.F) {
	image := theCaseNamed(f, "c08-fresh.fresh-live").image
	f.Add(image[:16*BlockSize])
	f.Add(image[:BlockSize])
	f.Add(make([]byte, BlockSize))
	f.Fuzz(exercise)
}

// fuzzBlocks bounds the data blocks of a dump in a fuzz test: a few valid
// metadata blocks may describe 2^31 data blocks, and a tolerant dump lists all.
const fuzzBlocks = 1 << 20

// exercise runs everything over an image and checks how the answers must agree.
func exercise(t *testing.T, image []byte) {
	r := bytes.NewReader(image)
	worst := Severity(99)
	sum, err := Check(r, int64(len(image)), func(f *Fault) {
		worst = min(worst, f.Severity)
		if !errors.Is(f, ErrDamaged) && !errors.Is(f, io.ErrUnexpectedEOF) {
			t.Errorf("fault wraps neither ErrDamaged nor a read error: %v", f)
		}
	})
	if err != nil {
		if !errors.Is(err, ErrNotEra) && !errors.Is(err, ErrNewer) {
			t.Fatal(err)
		}
		return
	}
	m, err := Open(r, int64(len(image)))
	if err != nil {
		if sum.Faults == 0 {
			t.Fatalf("check finds nothing, but: %v", err)
		}
		return
	}
	exerciseView(t, m.Live(), worst)
	if v, err := m.Snapshot(); err == nil {
		exerciseView(t, v, worst)
	} else if !errors.Is(err, ErrNoSnapshot) && worst != SeverityLost {
		t.Fatalf("check finds the snapshot sound, but: %v", err)
	}
}

func exerciseView(t *testing.T, v *View, worst Severity) {
	last := Block(0)
	err := v.Changed(Query{Since: v.super.Era / 2}, func(r Range) error {
		if r.Begin >= r.End || r.Begin < last || r.End > Block(v.super.NrBlocks) {
			t.Fatalf("range %v after %d", r, last)
		}
		last = r.End + 1
		return nil
	})
	if err != nil && worst != SeverityLost {
		t.Fatalf("check finds the trees sound, but: %v", err)
	}
	if v.super.NrBlocks > fuzzBlocks {
		return
	}
	tolerant := DumpOptions{Damaged: func(*Fault) {}}
	list, err := v.writesets(pdata.NewBitmap(v.dev.Blocks), func(pdata.Span, *Fault) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range list {
		if w.Bits > fuzzBlocks {
			return
		}
	}
	if err := v.Dump(&content{}, DumpOptions{}); err != nil && worst != SeverityLost {
		t.Fatalf("check finds the trees sound, but: %v", err)
	}
	repaired := make(memory, 256*BlockSize)
	if err := v.Dump(NewBuilder(repaired, int64(len(repaired))), tolerant); err != nil {
		if errors.Is(err, ErrNoSpace) {
			return
		}
		t.Fatalf("repair fails: %v", err)
	}
	for _, f := range faultsOf(t, repaired) {
		if f.Severity != SeverityMinor { // an era near 2^32 stays one
			t.Errorf("repaired, but %v", f)
		}
	}
	for _, since := range []Era{0, v.super.Era / 2, v.super.Era} {
		mustCover(t, openBytes(t, repaired).Live(), v, since)
	}
}

// mustCover checks that the repaired metadata lists all that a tolerant query
// of the damaged one lists.
func mustCover(t *testing.T, repaired, damaged *View, since Era) {
	all := pdata.NewBitmap(uint64(repaired.super.NrBlocks))
	err := repaired.Changed(Query{Since: since}, func(r Range) error {
		all.Fill(uint64(r.Begin), uint64(r.End))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	err = damaged.Changed(Query{Since: since, Damaged: func(*Fault) {}}, func(r Range) error {
		for b := uint64(r.Begin); b < uint64(r.End); b++ {
			if all[b/64]>>(b%64)&1 == 0 {
				t.Fatalf("block %d written since %d is lost by repair", b, since)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// FuzzXML checks that what parses can be restored, that the restored metadata
// is sound, and that its dump restores to the same bytes.
func FuzzXML(f *testing.F) {
	for _, name := range []string{"c02-bs4096-256m.clean", "c02-bs4096-256m.snap-era2"} {
		f.Add(theCaseNamed(f, name).file(f, "dump.xml.zst"))
	}
	f.Add([]byte(`<superblock uuid="&lt;x" block_size="8" nr_blocks="70" current_era="9"><!-- c --><writeset era="9" nr_bits="70"><marked block_begin="3" len="66"/></writeset><era_array><era block="0" era="8"/></era_array></superblock>`))
	f.Fuzz(func(t *testing.T, xml []byte) {
		image := make(memory, 96*BlockSize)
		err := Restore(bytes.NewReader(xml), image, int64(len(image)))
		if err != nil {
			if !errors.Is(err, ErrXML) && !errors.Is(err, ErrNoSpace) {
				t.Fatalf("error of no class: %v", err)
			}
			return
		}
		for _, f := range faultsOf(t, image) {
			if f.Severity != SeverityMinor { // an era near 2^32
				t.Errorf("restored, but %v", f)
			}
		}
		dump, err := dumpXML(openBytes(t, image).Live(), DumpOptions{})
		if err != nil {
			t.Fatal(err)
		}
		again := make(memory, len(image))
		if err := Restore(strings.NewReader(dump), again, int64(len(again))); err != nil {
			t.Fatalf("%v in %s", err, dump)
		}
		if !bytes.Equal(image, again) {
			t.Fatal("the dump restores to something else")
		}
	})
}

// FuzzRanges checks that a list that parses is read the same when written again.
func FuzzRanges(f *testing.F) {
	f.Add([]byte("<blocks>\n  <block block=\"1\"/>\n  <range begin=\"10\" end = \"20\"/>\n</blocks>\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		var list []Range
		var again bytes.Buffer
		x := NewRangesXML(&again)
		keep := func(r Range) error {
			list = append(list, r)
			return x.Range(r)
		}
		if err := ParseRangesXML(bytes.NewReader(text), keep); err != nil {
			if !errors.Is(err, ErrXML) {
				t.Fatalf("error of no class: %v", err)
			}
			return
		}
		if err := x.Close(); err != nil {
			t.Fatal(err)
		}
		i := 0
		err := ParseRangesXML(&again, func(r Range) error {
			if r != list[i] {
				t.Fatalf("%v, want %v", r, list[i])
			}
			i++
			return nil
		})
		if err != nil || i != len(list) {
			t.Fatalf("%d ranges of %d (%v)", i, len(list), err)
		}
	})
}
