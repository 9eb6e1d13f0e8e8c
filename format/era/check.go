package era

import (
	"io"
	"slices"
)

// Summary is the outcome of a check.
type Summary struct {
	Superblock Superblock `json:"superblock"`
	Faults     int        `json:"faults"`
	Worst      Severity   `json:"worst,omitempty"` // 0 without faults
	// InUse counts the metadata blocks found in use; with faults it may be
	// too small.
	InUse uint64 `json:"in_use"`
}

// Check examines the metadata in the first size bytes of r: every block of the
// live state and of the held snapshot, the values in them, and the space map
// against the references found. It calls report for every fault and goes on as
// far as anything can be read; a block that r cannot read is a fault as well. It
// fails only when there is nothing to check, with ErrNotEra or ErrNewer.
func Check(r io.ReaderAt, size int64, report func(*Fault)) (Summary, error) {
	c := checker{report: report, known: map[faultKey]bool{}}
	m, err := Open(r, size)
	if err != nil {
		f := asFault(err)
		if f == nil {
			return c.sum, err
		}
		c.fault(f)
		return c.sum, nil
	}
	c.m, c.sum.Superblock = m, m.super
	c.refs = newRefs(m.dev.blocks)
	c.superblock()
	c.views()
	c.count()
	c.spaceMap()
	c.sum.InUse = c.refs.used()
	return c.sum, nil
}

// checker is one check on its way.
type checker struct {
	m      *Metadata
	snap   *View // nil when none is held or it is unreadable
	report func(*Fault)
	known  map[faultKey]bool // reported, for the views share blocks
	sum    Summary
	refs   refs
	hidden bool // a fault hides references
}

type faultKey struct {
	offset  int64
	problem string
}

func (c *checker) fault(f *Fault) {
	k := faultKey{f.Offset, f.Problem}
	if c.known[k] {
		return
	}
	c.known[k] = true
	c.sum.Faults++
	if c.sum.Worst == 0 || f.Severity < c.sum.Worst {
		c.sum.Worst = f.Severity
	}
	c.report(f)
}

func (c *checker) minor(s Severity, a Addr, object, format string, args ...any) {
	f := damage(a, object, format, args...)
	f.Severity = s
	c.fault(f)
}

// superblock checks what Open leaves, because reading does without it.
func (c *checker) superblock() {
	s := c.m.super
	if s.SpaceMap.Blocks > c.m.dev.blocks {
		c.fault(damage(0, "superblock", "the space map counts %d blocks, the device has %d", s.SpaceMap.Blocks, c.m.dev.blocks))
	}
	if s.Era >= 1<<31 {
		c.minor(SeverityMinor, 0, "superblock", "era %d: the kernel does not handle the end of its 32-bit counter", s.Era)
	}
}

// views reads the live state and the snapshot as a dump does.
func (c *checker) views() {
	c.survey(c.m.Live())
	if c.m.super.Snapshot == 0 {
		return
	}
	snap, err := c.m.Snapshot()
	if err != nil {
		c.hidden = true
		f := asFault(err)
		if f == nil {
			f = damage(c.m.super.Snapshot, "metadata snapshot", "%v", err)
		}
		c.fault(f)
		return
	}
	c.snap = snap
	c.survey(snap)
}

func (c *checker) survey(v *View) {
	if _, err := newDump(v, DumpOptions{Damaged: c.fault}); err != nil {
		c.fault(damage(0, "superblock", "%v", err)) // not reached: faults are no errors here
	}
}

// count counts the references to every block from the superblock on.
func (c *checker) count() {
	c.refs.add(0)
	c.countView(c.m.super)
	if at := c.m.super.Snapshot; at != 0 && c.m.dev.inside(at, "") == nil {
		c.refs.add(at)
	}
	if c.snap != nil {
		c.countView(c.snap.super)
	}
	c.countSpaceMap()
}

func (c *checker) countView(s Superblock) {
	c.countTree(s.WritesetTree, writesetWidth, func(value []byte) {
		c.countArray(Addr(le.Uint64(value[4:])))
	})
	c.countArray(s.EraArray)
	if s.CurrentRoot != 0 {
		c.countArray(s.CurrentRoot)
	}
}

func (c *checker) countArray(root Addr) {
	c.countTree(root, childWidth, func(value []byte) {
		if a := Addr(le.Uint64(value)); c.m.dev.inside(a, "") == nil {
			c.refs.add(a)
		}
	})
}

// countTree counts a reference to the root and, when it is the first, all that
// is below. value sees each value of the leaves.
func (c *checker) countTree(root Addr, valueSize int, value func([]byte)) {
	t := tree{dev: &c.m.dev, valueSize: valueSize, node: c.shape}
	t.enter = func(a Addr) bool { return c.m.dev.inside(a, "") != nil || c.refs.add(a) }
	t.leaf = func(n node, i, j int) error {
		for ; i < j; i++ {
			value(n.value(i))
		}
		return nil
	}
	t.lost = func(_ span, f *Fault) error {
		c.hidden = true
		c.fault(f)
		return nil
	}
	if err := t.walk(root, allKeys()); err != nil {
		c.fault(damage(0, "superblock", "%v", err)) // not reached: faults are no errors here
	}
}

// shape checks what the kernel keeps to and reading does not need.
func (c *checker) shape(a Addr, n node, root bool) {
	if m := maxEntries(n.valueSize()); n.maxEntries() != m {
		c.minor(SeverityMinor, a, "btree node", "room for %d entries, the kernel makes it %d", n.maxEntries(), m)
	}
	if !root && n.entries() < n.maxEntries()/3 {
		c.minor(SeverityMinor, a, "btree node", "%d entries, less than a third of %d", n.entries(), n.maxEntries())
	}
}

// refs counts references to metadata blocks: one byte a block, and a map for
// the few that need more.
type refs struct {
	low  []uint8
	high map[Addr]uint32
}

func newRefs(blocks uint64) refs {
	return refs{low: make([]uint8, blocks), high: map[Addr]uint32{}}
}

// add counts a reference and says whether it is the first.
func (r refs) add(a Addr) bool {
	if r.low[a] == 255 {
		r.high[a]++
		return false
	}
	r.low[a]++
	return r.low[a] == 1
}

func (r refs) get(a uint64) uint32 {
	return uint32(r.low[a]) + r.high[Addr(a)]
}

func (r refs) used() uint64 {
	n := 0
	for chunk := range slices.Chunk(r.low, 4096) {
		for _, c := range chunk {
			if c != 0 {
				n++
			}
		}
	}
	return uint64(n)
}
