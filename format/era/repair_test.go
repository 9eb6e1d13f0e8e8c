package era

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"tidemark/format/pdata"
)

// content is a Sink that keeps everything.
type content struct {
	h         Header
	writesets map[Era][]bool
	order     []Era
	eras      []Era
}

func (c *content) Begin(h Header) error {
	*c = content{h: h, writesets: map[Era][]bool{}}
	return nil
}

func (c *content) BeginWriteset(e Era, _ uint32) error {
	c.order = append(c.order, e)
	c.writesets[e] = nil
	return nil
}

func (c *content) Bits(words []uint64, n int) error {
	e := c.order[len(c.order)-1]
	for i := range n {
		c.writesets[e] = append(c.writesets[e], words[i/64]>>(i%64)&1 != 0)
	}
	return nil
}

func (c *content) EndWriteset() error    { return nil }
func (c *content) BeginArray() error     { return nil }
func (c *content) EndArray() error       { return nil }
func (c *content) End() error            { return nil }
func (c *content) Eras(eras []Era) error { c.eras = append(c.eras, eras...); return nil }

func contentOf(t testing.TB, v *View, o DumpOptions) *content {
	t.Helper()
	c := &content{}
	if err := v.Dump(c, o); err != nil {
		t.Fatal(err)
	}
	return c
}

// newest returns the newest era of each block, writesets merged.
func (c *content) newest() []Era {
	eras := slices.Clone(c.eras)
	for e, bits := range c.writesets {
		for b, set := range bits {
			if set && b < len(eras) {
				eras[b] = max(eras[b], e)
			}
		}
	}
	return eras
}

func TestLogicalDumpGivesTheNewestEra(t *testing.T) {
	older := 0
	for _, c := range goodCases(t) {
		v := c.open(t).Live()
		want := contentOf(t, v, DumpOptions{}).newest()
		got := contentOf(t, v, DumpOptions{Logical: true})
		if !slices.Equal(got.eras, want) || len(got.order) != 0 {
			t.Errorf("%s: logical dump is not the newest era of each block", c.name)
		}
		if !c.has("dump-logical-0.9.xml.zst") || !v.Clean() {
			continue
		}
		ours, err := dumpXML(v, DumpOptions{Logical: true})
		if err != nil {
			t.Fatal(err)
		}
		if theirs := string(c.file(t, "dump-logical-0.9.xml.zst")); ours != theirs {
			older++
			if strings.Count(ours, "\n") != strings.Count(theirs, "\n") {
				t.Errorf("%s: not the form of era_dump --logical", c.name)
			}
		}
	}
	if older == 0 {
		t.Error("no case shows the fault of era_dump 0.9 --logical")
	}
}

// damagedArray returns an image whose era array block with the given index is
// unreadable.
func damagedArray(t testing.TB, image []byte, index int) []byte {
	t.Helper()
	root := openBytes(t, image).super.EraArray
	leaf := pdata.TreeNode(image[root.Offset() : root.Offset()+BlockSize])
	image[Addr(leaf.Value64(index)).Offset()+100] ^= 1
	return image
}

func TestDamagedArrayBlockCostsOnlyItsRange(t *testing.T) {
	c := theCaseNamed(t, "c01-bs8-64m-snap.clean")
	good := contentOf(t, c.open(t).Live(), DumpOptions{})
	for index := range 17 {
		c.image = damagedArray(t, c.file(t, "meta.img.zst"), index)
		v := c.open(t).Live()
		if err := v.Dump(&content{}, DumpOptions{}); !errors.Is(err, ErrDamaged) {
			t.Fatalf("dump of damaged metadata: %v, want ErrDamaged", err)
		}
		for _, logical := range []bool{false, true} {
			var faults []*Fault
			got := contentOf(t, v, DumpOptions{Logical: logical, Damaged: func(f *Fault) { faults = append(faults, f) }})
			if len(faults) != 1 || !strings.Contains(faults[0].Effect, "data blocks") {
				t.Errorf("faults: %v", faults)
			}
			newest := got.newest()
			for b, e := range good.newest() {
				if b/erasPerBlock == index {
					e = got.h.Era
				}
				if newest[b] != e {
					t.Fatalf("array block %d damaged, logical %v: block %d has era %d, want %d", index, logical, b, newest[b], e)
				}
			}
		}
	}
}

func TestRepairLosesNoChange(t *testing.T) {
	for _, c := range allCases(t) {
		if !strings.HasPrefix(c.name, "c16-") || strings.HasPrefix(c.name, "c16-corrupt.sb-") {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			good := contentOf(t, theCaseNamed(t, "c01-bs8-64m-snap.clean").open(t).Live(), DumpOptions{}).newest()
			image := make(memory, len(c.image))
			before := bytes.Clone(c.image)
			if err := Repair(c.open(t), image, int64(len(image)), nil); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(before, c.image) {
				t.Error("repair changed its input")
			}
			mustBeSound(t, image)
			mustTool(t, "era_check", writeFile(t, image))
			got := contentOf(t, openBytes(t, image).Live(), DumpOptions{}).newest()
			for b, e := range good {
				if got[b] < e {
					t.Fatalf("block %d has era %d after repair, was %d", b, got[b], e)
				}
			}
		})
	}
}

func TestQueryOverDamageListsWhatIsHidden(t *testing.T) {
	c := theCaseNamed(t, "c01-bs8-64m-snap.clean")
	var good []Range
	keep := func(to *[]Range) func(Range) error {
		return func(r Range) error { *to = append(*to, r); return nil }
	}
	if err := c.open(t).Live().Changed(Query{Since: 2}, keep(&good)); err != nil {
		t.Fatal(err)
	}
	c.image = damagedArray(t, c.image, 3)
	v := c.open(t).Live()
	if err := v.Changed(Query{Since: 2}, func(Range) error { return nil }); !errors.Is(err, ErrDamaged) {
		t.Fatalf("got %v, want ErrDamaged", err)
	}
	var got []Range
	if err := v.Changed(Query{Since: 2, Damaged: func(*Fault) {}}, keep(&got)); err != nil {
		t.Fatal(err)
	}
	good = append(good, Range{3 * erasPerBlock, 4 * erasPerBlock})
	if want := runsList(good).merged(); !slices.Equal(got, want) {
		t.Errorf("got %v want %v", got, want)
	}
}

func TestOpenWritesetIsKept(t *testing.T) {
	c := theCaseNamed(t, "c07-bs128-unclean.crash")
	v := c.open(t).Live()
	if v.Clean() {
		t.Fatal("the case is a power cut")
	}
	sets, err := v.Writesets()
	if err != nil || len(sets) != 1 || !sets[0].Current || sets[0].Era != v.Superblock().Era {
		t.Fatalf("writesets %v (%v)", sets, err)
	}
	with, without := contentOf(t, v, DumpOptions{}), contentOf(t, v, DumpOptions{Archived: true})
	if len(with.order) != 1 || len(without.order) != 0 {
		t.Errorf("dumped writesets %v, archived only %v", with.order, without.order)
	}
}

func TestSnapshotGoneIsNoticed(t *testing.T) {
	c := theCaseNamed(t, "c01-bs8-64m-snap.live-snap")
	v, err := c.open(t).Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range []string{"c01-bs8-64m-snap.dropped", "c01-bs8-64m-snap.ckpt", "c06-bs1000-odd.live-snap"} {
		copy(c.image, theCaseNamed(t, other).image)
		if err := v.Recheck(); !errors.Is(err, ErrSnapshotGone) {
			t.Errorf("%s: %v, want ErrSnapshotGone", other, err)
		}
	}
	if _, err := theCaseNamed(t, "c01-bs8-64m-snap.dropped").open(t).Snapshot(); !errors.Is(err, ErrNoSnapshot) {
		t.Errorf("%v, want ErrNoSnapshot", err)
	}
}
