package thin

import (
	"tidemark/format/pdata"
)

// CheckOptions say what to check. The zero value checks all, and the live state.
type CheckOptions struct {
	// SkipMappings leaves out the mappings, and the space maps, which count them.
	SkipMappings bool
	// Snapshot checks the trees of the held metadata snapshot, and nothing else: in a pool that
	// is in use nothing else stands still.
	Snapshot bool
	// Report gets every fault. It may be nil.
	Report func(*Fault)
}

// Summary is the outcome of a check.
type Summary struct {
	Superblock Superblock     `json:"superblock"`
	Devices    int            `json:"devices"`
	Mapped     uint64         `json:"mapped_blocks"` // of all devices, shared ones counted for each
	Faults     int            `json:"faults"`
	Worst      pdata.Severity `json:"worst,omitempty"` // 0 without faults
}

// Check reads the whole metadata: the details and mappings of every device of the live state
// and of the held snapshot, and the space maps against the references found. It reports
// every fault and goes on as far as anything can be read. It fails with ErrNoSnapshot where
// that was to be checked.
func (m *Metadata) Check(o CheckOptions) (Summary, error) {
	c := checker{m: m, o: o, sum: Summary{Superblock: m.super}, known: map[faultKey]bool{}}
	c.meta = pdata.Counter{Dev: &m.dev, Refs: pdata.NewRefs(m.dev.Blocks), Report: c.fault}
	c.leaves, c.inner = make([]uint16, m.dev.Blocks), map[Addr]uint64{}
	c.space()
	if o.Snapshot {
		v, err := m.Snapshot()
		if err == nil {
			c.view(v)
		}
		return c.sum, err
	}
	c.meta.Refs.Add(0)
	c.view(m.Live())
	if at := m.super.Snapshot; at != 0 {
		c.meta.Block(at)
		if v, err := m.Snapshot(); err != nil {
			c.meta.Hidden = true
			c.fault(asFault(at, err))
		} else {
			devices, mapped := c.sum.Devices, c.sum.Mapped
			c.view(v)
			c.sum.Devices, c.sum.Mapped = devices, mapped
		}
	}
	if !o.SkipMappings {
		c.compare()
	}
	return c.sum, nil
}

// asFault makes a fault of any error about a block.
func asFault(at Addr, err error) *Fault {
	if f := pdata.AsFault(err); f != nil {
		return f
	}
	return ours.Damage(min(at, pdata.MaxMetadataBlocks), "metadata snapshot", "%v", err)
}

// checker is one check on its way.
type checker struct {
	m     *Metadata
	o     CheckOptions
	sum   Summary
	known map[faultKey]bool // reported, for views share blocks

	meta pdata.Counter // of metadata blocks
	data pdata.Refs    // of data blocks
	maps [2]pdata.SpaceMap

	leaves []uint16        // mappings in each leaf that was met
	inner  map[Addr]uint64 // mappings below each other node that was met
	bufs   [maxHeight]pdata.TreeNode
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
	if c.o.Report != nil {
		c.o.Report(f)
	}
}

// space makes what the space maps are compared with. There are no more counts of data blocks
// than bitmaps that are really there, whatever the superblock says.
func (c *checker) space() {
	bitmaps := uint64(0)
	t := pdata.Tree{Dev: &c.m.dev, ValueSize: 16, Lost: func(pdata.Span, *Fault) error { return nil }}
	t.Leaf = func(_ pdata.TreeNode, i, j int) error {
		bitmaps += uint64(j - i)
		return nil
	}
	if err := t.Walk(c.m.super.Data.Index, pdata.AllKeys()); err != nil {
		bitmaps = 0 // told when the space map is compared
	}
	c.data = pdata.NewRefs(min(c.m.super.Data.Blocks, bitmaps*pdata.BitmapEntries))
	hidden := func() bool { return c.meta.Hidden }
	c.maps = [2]pdata.SpaceMap{
		{Dev: &c.m.dev, Root: c.m.super.Metadata, Refs: c.meta.Refs, Where: "superblock", Hidden: hidden, Report: c.fault, Lenient: true},
		{Dev: &c.m.dev, Root: c.m.super.Data, Refs: c.data, Where: "superblock", Hidden: hidden, Report: c.fault, OfData: true, Lenient: true},
	}
}

// compare holds both space maps against the references found.
func (c *checker) compare() {
	if s := c.m.super; s.Metadata.Blocks > c.m.dev.Blocks {
		c.fault(ours.Damage(0, "superblock", "the space map counts %d blocks, the device has %d", s.Metadata.Blocks, c.m.dev.Blocks))
	}
	for i := range c.maps {
		c.meta.SpaceMap(&c.maps[i])
	}
	for i := range c.maps {
		c.maps[i].Compare()
	}
}

// view checks the trees of one view.
func (c *checker) view(v *View) {
	details := map[uint64]Device{}
	c.meta.Tree(v.super.Details, detailsSize, func(n pdata.TreeNode, i, j int) {
		for ; i < j; i++ {
			details[n.Key(i)] = Device{Mapped: le.Uint64(n.Value(i))}
		}
	})
	if c.meta.Hidden { // some of them are not known
		details = nil
	}
	c.sum.Devices += len(details)
	if c.o.SkipMappings {
		return
	}
	type device struct {
		id   uint64
		root Addr
	}
	var list []device
	c.meta.Tree(v.super.Mappings, pdata.ChildWidth, func(n pdata.TreeNode, i, j int) {
		for ; i < j; i++ {
			list = append(list, device{n.Key(i), Addr(n.Value64(i))})
		}
	})
	for _, d := range list {
		mapped, whole := c.mappings(d.root, 0, pdata.AllKeys())
		c.sum.Mapped += mapped
		known, ok := details[d.id]
		delete(details, d.id)
		switch {
		case details == nil:
		case !ok:
			c.fault(ours.Damage(v.super.Details, "device details", "device %d has mappings and no details", d.id))
		case whole && !c.meta.Hidden && known.Mapped != mapped:
			c.fault(ours.Damage(v.super.Details, "device details", "device %d has %d mapped blocks, the details say %d", d.id, mapped, known.Mapped))
		}
	}
	if c.meta.Hidden {
		return
	}
	for id := range details {
		c.fault(ours.Damage(v.super.Mappings, "mapping tree", "device %d has details and no mappings", id))
	}
}

// mappings counts the references of a device's mappings and returns how many there are; whole
// is false when some cannot be read. What several devices share is read once.
func (c *checker) mappings(at Addr, height int, bound pdata.Span) (n uint64, whole bool) {
	inside := c.m.dev.Inside(at, "btree node") == nil
	if inside && !c.meta.Refs.Add(uint64(at)) {
		if n, ok := c.inner[at]; ok {
			return n, true
		}
		return uint64(c.leaves[at]), true
	}
	if height == maxHeight {
		return c.lose(ours.Damage(min(at, pdata.MaxMetadataBlocks), "btree node", "deeper than %d levels", maxHeight))
	}
	if c.bufs[height] == nil {
		c.bufs[height] = pdata.Buffer(1)
	}
	node := c.bufs[height]
	if err := c.m.dev.ReadNode(at, node, mappingSize, height == 0, bound); err != nil {
		return c.lose(asFault(at, err))
	}
	c.meta.Shape(at, node, height == 0)
	if node.Leaf() {
		c.leaves[at] = uint16(node.Entries())
		c.dataBlocks(at, node)
		return uint64(node.Entries()), true
	}
	whole = true
	for i := range node.Entries() {
		child := pdata.Span{Lo: node.Key(i), Hi: bound.Hi}
		if i+1 < node.Entries() {
			child.Hi = node.Key(i + 1)
		}
		below, ok := c.mappings(Addr(node.Value64(i)), height+1, child)
		n, whole = n+below, whole && ok
	}
	c.inner[at] = n
	return n, whole
}

func (c *checker) lose(f *Fault) (uint64, bool) {
	c.meta.Hidden = true
	c.fault(f)
	return 0, false
}

// dataBlocks counts the references of a leaf to data blocks.
func (c *checker) dataBlocks(at Addr, n pdata.TreeNode) {
	_, values := n.Words()
	for i := range n.Entries() {
		b := le.Uint64(values[8*i:]) >> timeBits
		if b < c.data.Len() {
			c.data.Add(b)
		} else if b >= c.m.super.Data.Blocks {
			c.fault(ours.Damage(at, "btree node", "block %d is mapped to data block %d, and the pool has %d", n.Key(i), b, c.m.super.Data.Blocks))
		}
	}
}
