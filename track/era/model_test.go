package era

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"tidemark/extent"
	"tidemark/format/era"
	"tidemark/track"
)

const (
	modelBlock  = 8192
	modelBlocks = 96
)

// machine is a dm-era device in memory, and the file systems over it.
type machine struct {
	random   *rand.Rand
	data     []byte
	device   facts
	counter  uint64
	written  map[era.Block]era.Era
	held     *picture
	inFlight []func() // writes that are marked and have not reached the data
	frozen   bool
	t        testing.TB
}

func newMachine(t testing.TB, random *rand.Rand) *machine {
	return &machine{
		t: t, random: random, data: make([]byte, modelBlocks*modelBlock), counter: 1, written: map[era.Block]era.Era{},
		device: facts{
			Name: "x", Meta: "253:1", Data: "253:2", Size: modelBlocks * modelBlock, BlockSize: modelBlock, free: 1000,
			Activation: activation{Boot: "b", DiskSeq: 1, Number: "253:0"},
		},
	}
}

// picture is held metadata.
type picture struct {
	m       *machine
	counter uint64
	written map[era.Block]era.Era
}

func (m *machine) Size() int64                        { return int64(len(m.data)) }
func (m *machine) BlockSize() int64                   { return modelBlock }
func (m *machine) MetaPath() string                   { return "/dev/meta" }
func (m *machine) flush() error                       { return nil }
func (m *machine) standing() (era.Era, bool, error)   { return 0, false, nil }
func (m *machine) prepare(context.Context) error      { return nil }
func (m *machine) Close() error                       { return nil }
func (m *machine) drain(context.Context) error        { m.land(); return nil }
func (m *machine) now(context.Context) (facts, error) { return m.device, nil }

func (m *machine) Unprepare() error {
	if m.frozen {
		m.t.Error("a file is written while filesystems are frozen")
	}
	return nil
}

func (m *machine) head(off int64) ([]byte, error) { return m.data[off : off+headBytes], nil }

func (m *machine) take(context.Context) (snapshot, error) {
	if m.held != nil {
		return nil, errors.New("a snapshot is held")
	}
	m.held = &picture{m: m}
	return m.held, m.held.Retake(context.Background())
}

func (s *picture) Retake(context.Context) error {
	s.m.counter++
	s.counter, s.written = s.m.counter, maps.Clone(s.m.written)
	return nil
}

func (s *picture) Close() error {
	s.m.held = nil
	return s.m.Unprepare()
}

func (s *picture) Era() era.Era     { return era.Era(s.counter) }
func (s *picture) identity() string { return "" }

func (s *picture) Changed(_ context.Context, since era.Era) (extent.Set, error) {
	var list []extent.Extent
	for b, e := range s.written {
		if e >= since {
			list = append(list, extent.Extent{Off: int64(b) * modelBlock, Len: modelBlock})
		}
	}
	return extent.NewSet(list...), nil
}

func (s *picture) eras(blocks []era.Block) ([]era.Era, error) {
	if !slices.IsSorted(blocks) {
		return nil, errors.New("blocks out of order")
	}
	out := make([]era.Era, len(blocks))
	for i, b := range blocks {
		out[i] = s.written[b]
	}
	return out, nil
}

// write marks a block, and its data may reach the device only later.
func (m *machine) write() {
	b := era.Block(m.random.IntN(modelBlocks))
	m.written[b] = era.Era(m.counter)
	value := byte(m.random.IntN(255) + 1)
	land := func() {
		for i := range modelBlock / 2 {
			m.data[int(b)*modelBlock+i] = value
		}
	}
	if m.random.IntN(3) == 0 {
		m.inFlight = append(m.inFlight, land)
		return
	}
	land()
}

func (m *machine) writes(n int) {
	for range m.random.IntN(n) {
		m.write()
	}
}

func (m *machine) land() {
	for _, f := range m.inFlight {
		f()
	}
	m.inFlight = nil
}

// activate is a restart, after a clean end or not.
func (m *machine) activate() {
	m.land()
	m.counter++
	m.device.Activation.DiskSeq++
	if m.random.IntN(2) == 0 {
		m.device.Activation = activation{Boot: fmt.Sprint("boot ", m.counter), DiskSeq: 1, Number: "253:7"}
		m.device.Meta, m.device.Data = "8:1", "8:2"
	}
	m.device.Discards = 0
	m.held = nil
}

// mirror is a mirror of the machine, made as package transfer makes one.
type mirror struct {
	m     *machine
	state string
	copy  []byte
	mark  track.Mark
}

func (c *mirror) read(set extent.Set) {
	for _, e := range set.Extents() {
		copy(c.copy[e.Off:e.End()], c.m.data[e.Off:e.End()])
	}
}

// run mirrors, with writers at work until the freeze. It returns whether the mark
// was good.
func (c *mirror) run(t *testing.T) (incremental bool) {
	t.Helper()
	ctx := t.Context()
	e, err := newTracker(ctx, "/dev/x", Options{StateDir: c.state}.withDefaults(), c.m)
	must(t, err)
	defer func() { must(t, e.Close()) }()
	cut, err := e.Cut(ctx)
	must(t, err)
	todo, err := e.Changes(ctx, c.mark, cut.Mark)
	incremental = c.mark != "" && err == nil
	if errors.Is(err, track.ErrMarkLost) {
		t.Log(err)
		todo, err = e.Changes(ctx, "", cut.Mark)
	}
	must(t, err)
	if c.m.random.IntN(3) > 0 { // else all is left for the freeze
		must(t, e.Drain(ctx))
		c.read(todo)
		todo = extent.Set{}
	}
	c.m.writes(20)
	last := cut.Mark
	if c.m.random.IntN(2) == 0 {
		cut, err = e.Cut(ctx)
		must(t, err)
		more, err := e.Changes(ctx, last, cut.Mark)
		must(t, err)
		last, todo = cut.Mark, todo.Union(more)
	}
	must(t, e.Persist(ctx))
	c.m.writes(20)

	c.m.land()
	c.m.frozen = true
	cut, err = e.Cut(ctx)
	must(t, err)
	more, err := e.Changes(ctx, last, cut.Mark)
	must(t, err)
	c.read(todo.Union(more))
	still, err := e.Changes(ctx, cut.Mark, "")
	must(t, err)
	if !still.Empty() {
		t.Fatalf("%v was written while nobody wrote", still.Extents())
	}
	if !bytes.Equal(c.copy, c.m.data) {
		t.Fatal("the mirror differs from the source")
	}
	c.m.frozen = false
	c.m.writes(20)
	must(t, e.Keep(ctx, "owner", cut.Mark, true))
	c.mark = cut.Mark
	return incremental
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Whatever happens to the machine between two mirrors that dm-era can see, the
// second equals the source.
func TestEraMirrorsEqualTheirSourceWhateverHappens(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	for n := range uint64(60) {
		t.Run(fmt.Sprint(seed+n), func(t *testing.T) {
			m := newMachine(t, rand.New(rand.NewPCG(seed, n)))
			c := &mirror{m: m, state: t.TempDir(), copy: make([]byte, len(m.data))}
			c.run(t)
			good := 0
			for range 6 {
				c.between()
				if c.run(t) {
					good++
				}
			}
			t.Logf("%d of 6 incremental", good)
		})
	}
}

// between is what may happen to a device from one mirror to the next.
func (c *mirror) between() {
	m := c.m
	m.writes(30)
	switch m.random.IntN(5) {
	case 0:
		m.activate()
	case 1: // a checkpoint, of whoever
		m.counter++
	case 2: // the metadata is made anew, and soon is in later eras than it was
		m.land()
		m.written, m.counter = map[era.Block]era.Era{}, 1
		m.activate()
		for range m.random.IntN(40) {
			m.counter++
			m.writes(3)
		}
	case 3: // a discard marks its first block only
		first := m.random.IntN(modelBlocks - 3)
		m.written[era.Block(first)] = era.Era(m.counter)
		clear(m.data[first*modelBlock : (first+3)*modelBlock])
		m.device.Discards++
	}
	m.writes(30)
}
