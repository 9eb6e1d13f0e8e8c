package era

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"tidemark/format/pdata"
)

// faultsOf returns what a check of the image reports.
func faultsOf(t testing.TB, image []byte) []*Fault {
	t.Helper()
	var faults []*Fault
	sum, err := Check(bytes.NewReader(image), int64(len(image)), func(f *Fault) { faults = append(faults, f) })
	if err != nil {
		faults = append(faults, &Fault{Problem: err.Error()})
	} else if sum.Faults != len(faults) {
		t.Fatalf("%d faults counted, %d reported", sum.Faults, len(faults))
	}
	return faults
}

func mustBeSound(t testing.TB, image []byte) {
	t.Helper()
	for _, f := range faultsOf(t, image) {
		t.Errorf("%v: %v", f.Severity, f)
	}
}

func TestCheckFindsNothingWrongWithKernelMetadata(t *testing.T) {
	for _, c := range goodCases(t) {
		if strings.HasPrefix(c.name, "c16-") {
			continue
		}
		t.Run(c.name, func(t *testing.T) { mustBeSound(t, c.image) })
	}
}

func TestCheckCountsWhatTheSpaceMapCounts(t *testing.T) {
	for _, c := range goodCases(t) {
		m, known := c.expect.SpaceMap.(map[string]any)
		if !known {
			continue
		}
		sum, err := Check(bytes.NewReader(c.image), int64(len(c.image)), func(*Fault) {})
		if err != nil || float64(sum.InUse) != m["used"] {
			t.Errorf("%s: %d blocks in use (%v), want %v", c.name, sum.InUse, err, m["used"])
		}
	}
}

func TestCheckReportsEachCorruptCase(t *testing.T) {
	want := map[string]string{
		"array-block0": "array block at byte", "array-blockLast": "array block at byte", "array-root": "btree node at byte",
		"sb-byte": "superblock at byte 0: checksum", "sm-bitmap": "space map bitmap at byte", "sm-index": "space map index at byte",
		"writeset-bits": "of era 5", "wstree-root": "btree node at byte",
	}
	for name, part := range want {
		faults := faultsOf(t, theCaseNamed(t, "c16-corrupt."+name).image)
		if len(faults) != 1 || !strings.Contains(faults[0].Error(), part) {
			t.Errorf("%s: %v, want one fault with %q", name, faults, part)
		}
	}
}

func TestFaultsTellOfNoBlocksBehindTheDevice(t *testing.T) {
	for name, effect := range map[string]string{
		"array-root": "era array, data blocks 0 to 16383", "array-block0": "era array, data blocks 0 to 1017",
		"array-blockLast": "era array, data blocks 16288 to 16383", "writeset-bits": "data blocks 0 to 16383",
	} {
		for _, f := range faultsOf(t, theCaseNamed(t, "c16-corrupt."+name).image) {
			if !strings.Contains(f.Effect, effect) {
				t.Errorf("%s: %q, want %q", name, f.Effect, effect)
			}
		}
	}
}

func TestCheckReportsEveryFlippedByte(t *testing.T) {
	for _, name := range []string{"c08-fresh.fresh-live", "c02-bs4096-256m.snap-era2"} {
		image := theCaseNamed(t, name).image
		for _, b := range inUse(t, image) {
			for i := b * BlockSize; i < (b+1)*BlockSize; i++ {
				image[i] ^= 0x10
				if len(faultsOf(t, image)) == 0 {
					t.Fatalf("%s: byte %d flipped, nothing reported", name, i)
				}
				image[i] ^= 0x10
			}
		}
		mustBeSound(t, image)
	}
}

func TestCheckReportsRandomFlips(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, c := range goodCases(t) {
		if strings.HasPrefix(c.name, "c16-") {
			continue
		}
		blocks := inUse(t, c.image)
		for range 30 {
			i := blocks[r.IntN(len(blocks))]*BlockSize + r.IntN(BlockSize)
			c.image[i] ^= 1 << r.IntN(8)
			if len(faultsOf(t, c.image)) == 0 {
				t.Fatalf("%s: byte %d flipped, nothing reported", c.name, i)
			}
			c.image = c.file(t, "meta.img.zst")
		}
	}
}

// inUse lists the blocks a check finds in use.
func inUse(t testing.TB, image []byte) []int {
	t.Helper()
	c := checker{m: openBytes(t, image), known: map[faultKey]bool{}, report: func(f *Fault) { t.Fatal(f) }}
	c.refs = pdata.Counter{Dev: &c.m.dev, Refs: pdata.NewRefs(c.m.dev.Blocks), Report: c.fault}
	c.views()
	c.count()
	c.refs.SpaceMap(&pdata.SpaceMap{Dev: &c.m.dev, Root: c.m.super.SpaceMap, Refs: c.refs.Refs})
	var list []int
	for b := range c.refs.Refs.Len() {
		if c.refs.Refs.Get(b) != 0 {
			list = append(list, int(b))
		}
	}
	return list
}

// resealed changes one 32-bit field of a block and makes its checksum right
// again: damage that only the structure shows.
func resealed(image []byte, k pdata.Kind, block int, field int, value uint32) []byte {
	b := image[block*BlockSize : (block+1)*BlockSize]
	le.PutUint32(b[field:], value)
	le.PutUint32(b, pdata.Checksum(k, b))
	return image
}

func TestCheckReportsWhatAChecksumHides(t *testing.T) {
	const name = "c01-bs8-64m-snap.live-snap"
	s := openBytes(t, theCaseNamed(t, name).image).super
	bitmapAt := int(le.Uint64(theCaseNamed(t, name).image[s.SpaceMap.Index.Offset()+16:]))
	for what, x := range map[string]struct {
		kind         pdata.Kind
		block, field int
		value        uint32
		severity     Severity
	}{
		"misplaced node":       {pdata.Node, int(s.EraArray), 8, 5, SeverityLost},
		"node of no type":      {pdata.Node, int(s.EraArray), 4, 0, SeverityLost},
		"node of two types":    {pdata.Node, int(s.EraArray), 4, 3, SeverityLost},
		"too many entries":     {pdata.Node, int(s.EraArray), 16, 253, SeverityLost},
		"entry gone":           {pdata.Node, int(s.EraArray), 16, 16, SeverityLost},
		"no room":              {pdata.Node, int(s.EraArray), 20, 0, SeverityLost},
		"huge room":            {pdata.Node, int(s.EraArray), 20, 1 << 31, SeverityLost},
		"wrong value size":     {pdata.Node, int(s.EraArray), 24, 12, SeverityLost},
		"keys not ascending":   {pdata.Node, int(s.EraArray), 32 + 8, 0, SeverityLost},
		"key with a gap":       {pdata.Node, int(s.EraArray), 32 + 8, 7, SeverityLost},
		"pointer to itself":    {pdata.Node, int(s.EraArray), 32 + 8*252, uint32(s.EraArray), SeverityLost},
		"pointer out of range": {pdata.Node, int(s.EraArray), 32 + 8*252, 1 << 20, SeverityLost},
		"block used twice":     {pdata.Node, int(s.EraArray), 32 + 8*252, uint32(le.Uint64(theCaseNamed(t, name).image[s.EraArray.Offset()+32+8*253:])), SeverityLost},
		"snapshot elsewhere":   {pdata.EraSuper, 0, 216, 5, SeverityLost},
		"era in the future":    {pdata.EraSuper, 0, 184, 1, SeverityLost},
		"short device":         {pdata.EraSuper, 0, 44, 1 << 10, SeverityLost},
		"allocated blocks":     {pdata.EraSuper, 0, 52, 38, SeveritySpace},
		"block counted free":   {pdata.Bits, bitmapAt, 16, 0, SeveritySpace},
		"snapshot forgotten":   {pdata.EraSuper, 0, 216, 0, SeverityMinor},
	} {
		image := resealed(theCaseNamed(t, name).image, x.kind, x.block, x.field, x.value)
		sum, err := Check(bytes.NewReader(image), int64(len(image)), func(*Fault) {})
		if err != nil || sum.Worst != x.severity {
			t.Errorf("%s: worst %v (%v), want %v", what, sum.Worst, err, x.severity)
		}
	}
}

// broken fails to read some blocks, as a disk with bad sectors does.
type broken struct {
	io.ReaderAt
	bad map[int64]bool
}

var errMedium = errors.New("input/output error")

func (b broken) ReadAt(p []byte, off int64) (int, error) {
	for at := off / BlockSize; at*BlockSize < off+int64(len(p)); at++ {
		if b.bad[at] {
			return 0, errMedium
		}
	}
	return b.ReaderAt.ReadAt(p, off)
}

func TestCheckReportsBadSectors(t *testing.T) {
	image := theCaseNamed(t, "c01-bs8-64m-snap.live-snap").image
	for _, at := range inUse(t, image) {
		var faults []*Fault
		r := broken{bytes.NewReader(image), map[int64]bool{int64(at): true}}
		_, err := Check(r, int64(len(image)), func(f *Fault) { faults = append(faults, f) })
		if err != nil || len(faults) == 0 {
			t.Fatalf("bad block %d: %v, %d faults", at, err, len(faults))
		}
		for _, f := range faults {
			if !errors.Is(f, errMedium) || f.Offset != int64(at)*BlockSize {
				t.Errorf("bad block %d: %v", at, f)
			}
		}
	}
}
