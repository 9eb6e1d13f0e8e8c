package era

import (
	"io"

	"tidemark/format/pdata"
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
		f := pdata.AsFault(err)
		if f == nil {
			return c.sum, err
		}
		c.fault(f)
		return c.sum, nil
	}
	c.m, c.sum.Superblock = m, m.super
	c.refs = pdata.Counter{Dev: &m.dev, Refs: pdata.NewRefs(m.dev.Blocks), Report: c.fault}
	c.superblock()
	c.views()
	space := pdata.SpaceMap{
		Dev: &m.dev, Root: m.super.SpaceMap, Refs: c.refs.Refs, Where: "superblock",
		Hidden: func() bool { return c.refs.Hidden }, Report: c.fault,
	}
	c.count()
	c.refs.SpaceMap(&space)
	space.Compare()
	c.sum.InUse = c.refs.Refs.Used()
	return c.sum, nil
}

// checker is one check on its way.
type checker struct {
	m      *Metadata
	snap   *View // nil when none is held or it is unreadable
	report func(*Fault)
	known  map[faultKey]bool // reported, for the views share blocks
	sum    Summary
	refs   pdata.Counter
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
	if s.SpaceMap.Blocks > c.m.dev.Blocks {
		c.fault(damage(0, "superblock", "the space map counts %d blocks, the device has %d", s.SpaceMap.Blocks, c.m.dev.Blocks))
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
		c.refs.Hidden = true
		f := pdata.AsFault(err)
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

// count counts the references to every block from the superblock on, but for those of the
// space map.
func (c *checker) count() {
	c.refs.Refs.Add(0)
	c.countView(c.m.super)
	if at := c.m.super.Snapshot; at != 0 {
		c.refs.Block(at)
	}
	if c.snap != nil {
		c.countView(c.snap.super)
	}
}

func (c *checker) countView(s Superblock) {
	c.refs.Tree(s.WritesetTree, writesetWidth, func(n pdata.TreeNode, i, j int) {
		for ; i < j; i++ {
			c.refs.Array(Addr(le.Uint64(n.Value(i)[4:])))
		}
	})
	c.refs.Array(s.EraArray)
	if s.CurrentRoot != 0 {
		c.refs.Array(s.CurrentRoot)
	}
}
