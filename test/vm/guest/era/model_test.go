//go:build linux

package era_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/format/era"
	"tidemark/linux/dmera"
	"tidemark/test/vm/guest"
)

// changes drains, takes a snapshot and lists.
func changes(t testing.TB, d *dmera.Device, since era.Era) extent.Set {
	t.Helper()
	set, _ := ask(t, d, since)
	return set
}

// ask is changes, and the mark to ask from the next time.
func ask(t testing.TB, d *dmera.Device, since era.Era) (extent.Set, era.Era) {
	t.Helper()
	until, err := d.Drain(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s, err := d.TakeSnapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	set, err := s.Changed(t.Context(), since)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return set, until
}

// model is a device, and for each mark that was made what was written since.
type model struct {
	t     *testing.T
	d     *dmera.Device
	data  string
	rnd   *rand.Rand
	marks []era.Era
	since []map[int64]bool // blocks, for each mark
}

// Random writes over many eras, with checkpoints, suspends, restarts and snapshots
// between them, are listed since each mark: all of them, and nothing else.
func TestChangesAreTheWrites(t *testing.T) {
	for _, blockSize := range []int64{4 * kib, 120 * kib} {
		t.Run(fmt.Sprint(blockSize/kib, "KiB"), func(t *testing.T) {
			seed := uint64(time.Now().UnixNano())
			t.Log("seed", seed)
			d := create(t, "model", blockSize)
			m := &model{t: t, d: d, data: guest.Disk(t, "data"), rnd: rand.New(rand.NewPCG(seed, 0))}
			m.marks, m.since = []era.Era{1}, []map[int64]bool{{}}
			for range 25 {
				m.step()
			}
			m.compare(4)
			m.d.Close()
		})
	}
}

func (m *model) step() {
	switch n := m.rnd.IntN(20); {
	case n < 10:
		m.write(1 + m.rnd.IntN(20))
	case n < 13:
		if err := m.d.Checkpoint(m.t.Context()); err != nil {
			m.t.Fatal(err)
		}
	case n < 14:
		guest.Run(m.t, "dmsetup", "suspend", m.d.Name())
		guest.Run(m.t, "dmsetup", "resume", m.d.Name())
	case n < 15:
		m.restart()
	default:
		m.compare(2)
	}
}

// write writes somewhere, at most two blocks at once, and remembers.
func (m *model) write(count int) {
	dev := guest.OpenDirect(m.t, m.d.Path())
	defer dev.Close()
	for range count {
		length := (1 + m.rnd.Int64N(2*m.d.BlockSize()/4096)) * 4096
		off := m.rnd.Int64N(m.d.Size()/4096) * 4096
		length = min(length, m.d.Size()-off)
		if _, err := dev.WriteAt(block.AlignedBuffer(int(length)), off); err != nil {
			m.t.Fatal(err)
		}
		for b := off / m.d.BlockSize(); b*m.d.BlockSize() < off+length; b++ {
			for _, set := range m.since {
				set[b] = true
			}
		}
	}
}

func (m *model) restart() {
	name, meta := m.d.Name(), m.d.MetaPath()
	if err := m.d.Remove(); err != nil {
		m.t.Fatal(err)
	}
	clean(m.t, meta)
	d, err := dmera.Activate(control(m.t), dmera.ActivateOptions{Name: name, Data: m.data, Meta: meta})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { d.Close() })
	m.d = d
}

// compare asks since some of the marks, and makes a new one.
func (m *model) compare(count int) {
	m.t.Helper()
	for range count {
		i := m.rnd.IntN(len(m.marks))
		got, until := ask(m.t, m.d, m.marks[i])
		var blocks []extent.Extent
		for b := range m.since[i] {
			off := b * m.d.BlockSize()
			blocks = append(blocks, extent.Extent{Off: off, Len: min(m.d.BlockSize(), m.d.Size()-off)})
		}
		if want := extent.NewSet(blocks...); !got.Equal(want) {
			m.t.Fatalf("since era %d: %v, want %v", m.marks[i], got, want)
		}
		m.marks, m.since = append(m.marks, until), append(m.since, map[int64]bool{})
	}
}

// A copy that is brought up to date while others write never stays behind: every
// write that was on its way is in the list after it, or is in the copy. The data
// device delays its writes, so that many are on their way at each moment.
func TestCopyUnderWritesIsComplete(t *testing.T) {
	guest.Modprobe(t, "dm-delay")
	disk := guest.Disk(t, "data")
	const size = 16 * mib
	data := guest.Mapper(t, "slow", fmt.Sprintf("0 %d delay %s 0 0 %s 0 20", size/512, disk, disk))
	d := createOn(t, "busy", data, 16*kib)
	replica := make([]byte, size)
	stop := make(chan struct{})
	var writers sync.WaitGroup
	for i := range 8 {
		writers.Go(func() { scribble(t, d.Path(), uint64(i), stop) })
	}
	source := guest.OpenDirect(t, d.Path())
	mark := era.Era(0)
	update := func() int64 {
		set, until := ask(t, d, mark)
		for _, e := range set.Extents() {
			p := block.AlignedBuffer(int(e.Len))
			if _, err := source.ReadAt(p, e.Off); err != nil {
				t.Fatal(err)
			}
			copy(replica[e.Off:], p)
		}
		mark = until
		return set.Bytes()
	}
	for range 15 {
		t.Log(update()/kib, "KiB changed")
	}
	close(stop)
	writers.Wait()
	update()
	final := block.AlignedBuffer(int(size))
	if _, err := source.ReadAt(final, 0); err != nil {
		t.Fatal(err)
	}
	for off := int64(0); off < size; off += 16 * kib {
		if !bytes.Equal(final[off:off+16*kib], replica[off:off+16*kib]) {
			t.Errorf("the copy is behind at byte %d", off)
		}
	}
	source.Close()
	d.Close()
}

// scribble writes to random places until it is stopped.
func scribble(t *testing.T, path string, seed uint64, stop <-chan struct{}) {
	dev, err := block.Open(path, block.Options{Direct: true, Write: true})
	if err != nil {
		t.Error(err)
		return
	}
	defer dev.Close()
	rnd := rand.New(rand.NewPCG(seed, 1))
	p := block.AlignedBuffer(4096)
	for n := byte(1); ; n++ {
		select {
		case <-stop:
			return
		default:
		}
		for i := range p {
			p[i] = n ^ byte(seed<<5)
		}
		// Few blocks, so that the same are written in era after era.
		if _, err := dev.WriteAt(p, rnd.Int64N(600)*4096); err != nil {
			t.Error(err)
			return
		}
	}
}
