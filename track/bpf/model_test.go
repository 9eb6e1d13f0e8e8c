package bpf_test

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/track"
	"tidemark/track/bpf"
)

var seed = flag.Uint64("seed", uint64(time.Now().UnixNano()), "seed of the model test")

const (
	modelSize    = 24 << 20
	modelRounds  = 4
	modelWriters = 6
	modelOps     = 80        // of each writer in a round
	modelLongest = 128 << 10 // bytes of one change
)

// A model of what tracking is for: a copy is kept in step with a disk that is
// in use, from nothing but the changes that the tracker tells. Whenever the
// writers stand still, the copy must be the disk.
func TestACopyMadeFromTheChangesIsTheDisk(t *testing.T) {
	t.Run("loop", func(t *testing.T) {
		dev := loopDisk(t, modelSize)
		(&copying{targets: []string{dev}, sources: []string{dev}, ops: modelOps, longest: modelLongest}).run(t)
	})
	t.Run("slow", func(t *testing.T) {
		// Longer than a Cut takes, so that many writes are in flight over it,
		// some before and some after they took effect.
		dev, im := slowDisk(t, modelSize, func(_ int64, _ int, apply func()) {
			time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond)
			apply()
			time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond)
		})
		(&copying{targets: []string{dev}, sources: []string{dev}, ops: 15, longest: 16 << 10, peek: im.snapshot}).run(t)
	})
	t.Run("partitions", func(t *testing.T) {
		disk, p1, p2 := partitioned(t, modelSize)
		all := []string{disk, p1, p2}
		(&copying{targets: all, sources: all, ops: modelOps, longest: modelLongest}).run(t)
	})
	t.Run("zram", func(t *testing.T) {
		dev := zram(t, modelSize)
		(&copying{targets: []string{dev}, sources: []string{dev}, ops: modelOps, longest: modelLongest}).run(t)
	})
}

// copying is one run of the model.
type copying struct {
	targets []string      // written
	sources []string      // tracked and copied
	ops     int           // of each writer in a round
	longest int           // bytes of one change
	peek    func() []byte // the content of the first source at this moment; may be nil

	mu     sync.Mutex
	flying map[int]extent.Extent // changes that are being made, bytes of the disk
	next   int
}

// begin notes that a change is being made; the caller calls the function when
// it has been.
func (m *copying) begin(e extent.Extent) (end func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.flying == nil {
		m.flying = map[int]extent.Extent{}
	}
	n := m.next
	m.next++
	m.flying[n] = e
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.flying, n)
	}
}

func (m *copying) inFlight() map[int]extent.Extent {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.flying)
}

// copyOf is the copy of one tracked device.
type copyOf struct {
	dev  *block.Device
	l    *bpf.Tracker
	mark track.Mark
	data []byte
	told extent.Set // as changed in this round

	m    *copying
	peek func() []byte         // may be nil
	seen []byte                // the content just after the last mark, when peek can tell
	over map[int]extent.Extent // what was being changed just after the last mark
}

func (m *copying) run(t *testing.T) {
	t.Logf("-seed %d", *seed)
	opts := places(t)
	var copies []*copyOf
	for _, src := range m.sources {
		d, err := block.Open(src, block.Options{Direct: true})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		c := &copyOf{m: m, dev: d, l: open(t, src, opts), data: make([]byte, d.Size())}
		c.mark = cut(t, c.l)
		if len(copies) == 0 && m.peek != nil {
			c.peek, c.seen = m.peek, m.peek()
		}
		copies = append(copies, c)
	}
	rng := rand.New(rand.NewPCG(*seed, 1))
	for round := range modelRounds {
		touched := m.hammer(t, rng, func() {
			for _, c := range copies {
				c.follow(t)
			}
		})
		for _, c := range copies {
			c.follow(t)
			c.check(t, round, touched)
		}
	}
}

// follow ends an epoch and copies what changed in it.
func (c *copyOf) follow(t *testing.T) {
	t.Helper()
	var before []byte
	var during []extent.Extent // changes that are being made over both marks
	if c.peek != nil {
		before = c.peek()
		for n, e := range c.m.inFlight() {
			if _, ok := c.over[n]; ok {
				during = append(during, e)
			}
		}
	}
	end, err := c.l.Cut(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	set, err := c.l.Changes(t.Context(), c.mark, end.Mark)
	if err != nil {
		t.Fatal(err)
	}
	if c.peek != nil {
		// What is in flight over both marks is told with the epochs before and
		// after, see Changes.
		wantDifferences(t, set.Union(extent.NewSet(during...)), c.seen, before)
		c.over, c.seen = c.m.inFlight(), c.peek()
	}
	if end.Doubt {
		t.Log("doubt: everything is copied again")
		set = extent.NewSet(extent.Extent{Len: c.dev.Size()})
	}
	for _, e := range set.Extents() {
		buf := block.AlignedBuffer(int(e.Len))
		if _, err := c.dev.ReadAt(buf, e.Off); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		copy(c.data[e.Off:], buf)
	}
	c.mark, c.told = end.Mark, c.told.Union(set)
	if rand.IntN(3) == 0 {
		if err := c.l.Persist(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// wantDifferences checks the promise itself: a block whose content differs
// between two moments that lie between the marks is in the set.
func wantDifferences(t *testing.T, set extent.Set, a, b []byte) {
	t.Helper()
	for off := 0; off < len(a); off += 512 {
		if !bytes.Equal(a[off:off+512], b[off:off+512]) && !set.Contains(int64(off)) {
			t.Fatalf("lost write: the content at %d changed between two marks, and is not in their changes", off)
		}
	}
}

// check compares the copy with the disk, which stands still.
func (c *copyOf) check(t *testing.T, round int, touched extent.Set) {
	t.Helper()
	now := block.AlignedBuffer(len(c.data))
	if _, err := c.dev.ReadAt(now, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	for off := 0; off < len(now); off += 4096 {
		end := min(off+4096, len(now))
		if !bytes.Equal(now[off:end], c.data[off:end]) {
			t.Fatalf("round %d: lost write: the copy differs in the block at %d", round, off)
		}
	}
	since, err := c.l.Changes(t.Context(), c.mark, "")
	if err != nil {
		t.Fatal(err)
	}
	if !since.Empty() {
		t.Errorf("round %d: %v changed while nobody wrote", round, since.Extents())
	}
	c.checkExtra(t, round, touched)
}

// checkExtra checks that nothing but what was written is told. Only of the
// whole disk, in whose offsets the writers keep book.
func (c *copyOf) checkExtra(t *testing.T, round int, touched extent.Set) {
	t.Helper()
	extra := c.told.Subtract(touched.Align(4096, modelSize))
	if c.dev.Size() == modelSize && !extra.Empty() {
		t.Errorf("round %d: %d bytes told as changed but never written, first %v", round, extra.Bytes(), extra.Extents()[0])
	}
	c.told = extent.Set{}
}

// hammer lets writers change the targets, calls follow all the while,
// and returns the bytes of the disk that were written.
func (m *copying) hammer(t *testing.T, rng *rand.Rand, follow func()) extent.Set {
	t.Helper()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var touched []extent.Extent
	for range modelWriters {
		r := rand.New(rand.NewPCG(rng.Uint64(), 2))
		wg.Go(func() {
			got, err := m.scribble(m.targets[r.IntN(len(m.targets))], r)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			touched = append(touched, got...)
		})
	}
	defer wg.Wait() // also when follow fails: the disks are taken away after
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for writing := true; writing; {
		follow()
		select {
		case <-done:
			writing = false
		default:
		}
	}
	return extent.NewSet(touched...)
}

// scribble makes random changes through one device.
func (m *copying) scribble(dev string, r *rand.Rand) ([]extent.Extent, error) {
	f, err := os.OpenFile(dev, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fd := int(f.Fd())
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	unit := int64(512)
	if strings.Contains(dev, "zram") {
		unit = 4096
	}
	id, err := block.Identify(dev)
	if err != nil {
		return nil, err
	}
	var touched []extent.Extent
	buf := block.AlignedBuffer(m.longest)
	for range m.ops {
		e := extent.Extent{Off: r.Int64N(size/unit) * unit}
		e.Len = min(size-e.Off, (1+r.Int64N(int64(len(buf))/unit))*unit)
		for i := range buf[:e.Len] {
			buf[i] = byte(r.Uint32())
		}
		onDisk := extent.Extent{Off: id.Start + e.Off, Len: e.Len}
		touched = append(touched, onDisk)
		end := m.begin(onDisk)
		err := change(fd, r.IntN(10), e, buf[:e.Len])
		end()
		if err != nil {
			return nil, fmt.Errorf("%s: %v: %w", dev, e, err)
		}
	}
	return touched, nil
}

func change(fd, how int, e extent.Extent, buf []byte) error {
	switch how {
	case 0:
		return ioctlRange(fd, unix.BLKDISCARD, e)
	case 1:
		return ioctlRange(fd, unix.BLKZEROOUT, e)
	case 2:
		_, err := unix.Pwrite(fd, buf, e.Off)
		if err != nil {
			return err
		}
		return unix.Fdatasync(fd) // an empty flush is no change
	default:
		_, err := unix.Pwrite(fd, buf, e.Off)
		return err
	}
}
