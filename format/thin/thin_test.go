package thin

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"tidemark/format/pdata"
)

// tool runs one of Debian's dm-thin tools, version 0.9.
func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is missing: apt-get install thin-provisioning-tools", name)
	}
	cmd := exec.Command(path, args...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v: %s%s", name, args, err, out, errs.String())
	}
	return string(out)
}

// pool is what thin_restore is to make metadata of: what each device maps.
type pool struct {
	blocks  uint64
	devices map[uint32]map[uint64]uint64 // block → data block << 24 | time
	ids     []uint32
}

// random makes a pool whose later devices are snapshots of earlier ones, changed since.
func random(rng *rand.Rand, size int) pool {
	p := pool{blocks: uint64(size)*4 + 10, devices: map[uint32]map[uint64]uint64{}}
	next := uint64(0)
	write := func(m map[uint64]uint64, time uint64) {
		at, n := uint64(rng.IntN(size)), uint64(1+rng.IntN(1+rng.IntN(size/4+1)))
		if rng.IntN(4) == 0 { // a discard
			for b := at; b < at+n; b++ {
				delete(m, b)
			}
			return
		}
		for b := at; b < at+n && next < p.blocks; b++ {
			m[b] = next<<timeBits | time
			next++
		}
	}
	for i := range uint64(2 + rng.IntN(4)) {
		id := uint32(rng.IntN(5000))
		if p.devices[id] != nil {
			continue
		}
		m := map[uint64]uint64{}
		if len(p.ids) > 0 && rng.IntN(4) > 0 {
			maps.Copy(m, p.devices[p.ids[rng.IntN(len(p.ids))]])
		}
		for range 1 + rng.IntN(6) {
			write(m, i)
		}
		p.devices[id], p.ids = m, append(p.ids, id)
	}
	slices.Sort(p.ids)
	return p
}

func sorted(m map[uint64]uint64) []uint64 {
	var keys []uint64
	for b := range m {
		keys = append(keys, b)
	}
	slices.Sort(keys)
	return keys
}

// restore has thin_restore make the metadata.
func (p pool) restore(t testing.TB) (path string, image []byte) {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "<superblock uuid=\"\" time=\"9\" transaction=\"7\" data_block_size=\"128\" nr_data_blocks=\"%d\">\n", p.blocks)
	for i, id := range p.ids {
		fmt.Fprintf(&b, "<device dev_id=\"%d\" mapped_blocks=\"%d\" transaction=\"%d\" creation_time=\"%d\" snap_time=\"9\">\n", id, len(p.devices[id]), i, i)
		for _, k := range sorted(p.devices[id]) {
			v := p.devices[id][k]
			fmt.Fprintf(&b, "<single_mapping origin_block=\"%d\" data_block=\"%d\" time=\"%d\"/>\n", k, v>>timeBits, v&(1<<timeBits-1))
		}
		b.WriteString("</device>\n")
	}
	b.WriteString("</superblock>\n")
	dir := t.TempDir()
	xml, path := filepath.Join(dir, "xml"), filepath.Join(dir, "meta")
	if err := errors.Join(os.WriteFile(xml, []byte(b.String()), 0o600), os.WriteFile(path, make([]byte, 4<<20), 0o600)); err != nil {
		t.Fatal(err)
	}
	tool(t, "thin_restore", "-i", xml, "-o", path)
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return path, image
}

func open(t testing.TB, image []byte) *Metadata {
	t.Helper()
	m, err := Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// What thin_restore made is dumped as thin_dump does, and its devices differ as thin_delta and a
// plain map say.
func TestRandomPoolsAreReadAsTheToolsDo(t *testing.T) {
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 1))
		p := random(rng, []int{20, 300, 5000}[seed%3])
		path, image := p.restore(t)
		v := open(t, image).Live()
		for format, name := range []string{"xml", "human_readable"} {
			var got bytes.Buffer
			if err := v.Dump(&got, DumpOptions{Format: DumpFormat(format)}); err != nil {
				t.Fatal(err)
			}
			if want := tool(t, "thin_dump", "-f", name, path); got.String() != want {
				t.Fatalf("seed %d: %s\nwant\n%s", seed, got.String(), want)
			}
		}
		sum, err := open(t, image).Check(CheckOptions{Report: func(f *Fault) { t.Error(f) }})
		if err != nil || sum.Devices != len(p.ids) {
			t.Fatalf("seed %d: %+v, %v", seed, sum, err)
		}
		for _, left := range p.ids {
			for _, right := range p.ids {
				p.compare(t, v, left, right)
			}
		}
	}
}

// compare holds Delta of two devices against plain maps.
func (p pool) compare(t *testing.T, v *View, left, right uint32) {
	t.Helper()
	a, err := v.Device(left)
	if err != nil {
		t.Fatal(err)
	}
	b, err := v.Device(right)
	if err != nil {
		t.Fatal(err)
	}
	ma, mb := p.devices[left], p.devices[right]
	want := map[uint64]Kind{}
	for k, v := range ma {
		want[k] = LeftOnly
		if w, ok := mb[k]; ok && v>>timeBits == w>>timeBits {
			want[k] = Same
		} else if ok {
			want[k] = Different
		}
	}
	for k := range mb {
		if _, ok := ma[k]; !ok {
			want[k] = RightOnly
		}
	}
	for _, changedOnly := range []bool{false, true} {
		seen, last := 0, uint64(0)
		err := v.Delta(a.Root, b.Root, changedOnly, func(d Difference) error {
			if d.Begin < last || d.Len == 0 {
				return fmt.Errorf("%+v after block %d", d, last)
			}
			last = d.Begin + d.Len
			newest := uint32(0)
			for k := d.Begin; k < last; k++ {
				i := k - d.Begin
				newest = max(newest, timeOf(ma[k]))
				if want[k] != d.Kind || d.Kind != RightOnly && ma[k]>>timeBits != d.Left+i || d.Kind != LeftOnly && mb[k]>>timeBits != d.Right+i {
					return fmt.Errorf("%+v: block %d is %v, %d, %d", d, k, want[k], ma[k]>>timeBits, mb[k]>>timeBits)
				}
				seen++
			}
			if d.Kind != Same && d.LeftTime != newest {
				return fmt.Errorf("%+v: its newest block is of %d", d, newest)
			}
			return nil
		})
		n := len(want)
		for _, k := range want {
			if changedOnly && k == Same {
				n--
			}
		}
		if err != nil || seen != n {
			t.Fatalf("%d to %d, %v: %v, %d blocks, want %d", left, right, changedOnly, err, seen, n)
		}
	}
}

// A flipped bit in use is found, or makes no difference; nothing panics or loops.
func TestFlippedBitsAreFound(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	_, image := random(rng, 1000).restore(t)
	c := checker{m: open(t, image), known: map[faultKey]bool{}}
	c.meta = pdata.Counter{Dev: &c.m.dev, Refs: pdata.NewRefs(c.m.dev.Blocks), Report: c.fault}
	c.leaves, c.inner = make([]uint16, c.m.dev.Blocks), map[Addr]uint64{}
	c.space()
	c.meta.Refs.Add(0)
	c.view(c.m.Live())
	c.compare()
	used := 0
	for b := range c.meta.Refs.Len() {
		if c.meta.Refs.Get(b) == 0 {
			continue
		}
		used++
		for range 8 {
			at := int(b)*pdata.BlockSize + rng.IntN(pdata.BlockSize)
			was := image[at]
			image[at] ^= 1 << rng.IntN(8)
			m, err := Open(bytes.NewReader(image), int64(len(image)))
			if err == nil {
				var sum Summary
				if sum, err = m.Check(CheckOptions{}); err == nil && sum.Faults == 0 {
					t.Fatalf("byte %d flipped, nothing found", at)
				}
			}
			image[at] = was
		}
	}
	if used < 10 {
		t.Fatalf("%d blocks in use", used)
	}
}

// kernels is metadata that Linux 6.12 left: 13 devices, 12 of them snapshots of one, with discards,
// one with an external origin, a metadata snapshot that is held.
func kernels(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/kernel-6.12.img.zst")
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

func TestKernelsMetadataHasNoFaults(t *testing.T) {
	m := open(t, kernels(t))
	sum, err := m.Check(CheckOptions{Report: func(f *Fault) { t.Error(f) }})
	if err != nil || sum.Devices != 13 || sum.Superblock.Snapshot == 0 {
		t.Errorf("%+v, %v", sum, err)
	}
	held, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	now, err := m.Live().Device(0)
	if err != nil {
		t.Fatal(err)
	}
	then, err := held.Device(0)
	if err != nil || then != now { // nothing was written since
		t.Fatalf("%+v, %+v, %v", now, then, err)
	}
	if err := held.Recheck(); err != nil {
		t.Error(err)
	}
	if _, err := m.Live().Device(5); !errors.Is(err, ErrNoDevice) {
		t.Error(err)
	}
}

// Devices that a kernel made share nodes of their trees at all levels.
func TestDevicesThatShareNodesDifferAsTheirMappingsSay(t *testing.T) {
	v := open(t, kernels(t)).Live()
	list, err := v.Devices()
	if err != nil {
		t.Fatal(err)
	}
	p := pool{devices: map[uint32]map[uint64]uint64{}}
	for _, d := range list {
		m := map[uint64]uint64{}
		p.devices[d.ID] = m
		err := v.Mappings(d.Root, func(r Mapping) error {
			for i := range r.Len {
				m[r.Begin+i] = (r.Data+i)<<timeBits | uint64(r.Time)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, left := range list {
		for _, right := range list {
			p.compare(t, v, left.ID, right.ID)
		}
	}
}

// FuzzMetadata patches what a kernel left and makes the checksums right again: nothing panics,
// loops, or reads what does not exist. A patch is five bytes: half the number of the block, an offset below 4096 (two
// bytes), how many zero bytes go before it, and a value.
func FuzzMetadata(f *testing.F) {
	whole := kernels(f)
	const used = 450 // blocks, and a few that are free
	f.Add([]byte{})
	f.Add([]byte{1, 0, 16, 0, 255, 2, 0, 16, 1, 0})
	f.Add([]byte{0, 1, 64, 0, 5, 0, 1, 72, 7, 5})
	f.Fuzz(func(t *testing.T, patches []byte) {
		image := bytes.Clone(whole[:used*pdata.BlockSize])
		for ; len(patches) >= 5; patches = patches[5:] {
			b := image[int(patches[0])*2%used*pdata.BlockSize:][:pdata.BlockSize]
			at := (int(patches[1])<<8 | int(patches[2])) % pdata.BlockSize
			kind := pdata.ThinSuper
			for k := pdata.ThinSuper; k <= pdata.Bits; k++ {
				if pdata.Checksum(k, b) == le.Uint32(b) {
					kind = k
				}
			}
			for i := at; i < min(at+int(patches[3])%8, len(b)); i++ {
				b[i] = 0
			}
			b[min(at+int(patches[3])%8, len(b)-1)] = patches[4]
			le.PutUint32(b, pdata.Checksum(kind, b))
		}
		m, err := Open(bytes.NewReader(image), int64(len(image)))
		if err != nil {
			return
		}
		sum, err := m.Check(CheckOptions{})
		if err != nil {
			t.Fatal(err)
		}
		list, err := m.Live().Devices()
		if err != nil && sum.Faults == 0 {
			t.Fatalf("no faults, and %v", err)
		}
		for _, d := range list {
			blocks := uint64(0)
			err := m.Live().Mappings(d.Root, func(m Mapping) error {
				blocks += m.Len
				return nil
			})
			if sum.Faults == 0 && (err != nil || blocks != d.Mapped) {
				t.Fatalf("no faults, and %d blocks of %+v, %v", blocks, d, err)
			}
			if err := m.Live().Delta(list[0].Root, d.Root, false, func(Difference) error { return nil }); err != nil && sum.Faults == 0 {
				t.Fatalf("no faults, and %v", err)
			}
		}
	})
}
