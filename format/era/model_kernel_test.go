package era

import (
	"slices"
	"sort"

	"tidemark/format/pdata"
)

// model allocates metadata blocks as Linux 6.1 does, without their content, to
// learn how many a device needs. The kernel copies a committed block before it
// changes it, and uses a block that a transaction has freed only after the commit.
// So a device needs as many blocks as are, at any moment, in use now or at the last
// commit.
type model struct {
	size    uint64       // blocks of the device, 0 for as many as wanted
	full    bool         // there was no free block
	counts  []uint8      // references, by address
	old     pdata.Bitmap // in use at the last commit
	begin   Addr         // the search for a free block begins here
	held    uint64       // in use now or at the last commit
	peak    uint64       // the most that were held
	fresh   pdata.Bitmap // made in this transaction: changed in place
	bitmaps []Addr
	index   Addr
	dirty   bool // the index must be written
	busy    bool // the space map is being changed: changes queue up
	queue   []bop
	nodes   map[Addr]*modelNode

	nrBlocks  uint64
	era       uint64
	writesets Addr // roots
	array     Addr
	current   Addr
	snapshot  Addr
	clone     [2]Addr // the snapshot's roots
}

// bop is a change of a reference count.
type bop struct {
	at  Addr
	inc bool
}

// modelNode is a btree node: keys, and where the values point.
type modelNode struct {
	max    int
	leaf   bool
	keys   []uint64
	values []Addr
	nested bool // values are roots of bitsets
}

// newModel formats metadata whose space map has the given number of bitmaps.
func newModel(size, bitmaps, nrBlocks uint64) *model {
	m := &model{size: size, nodes: map[Addr]*modelNode{}, nrBlocks: nrBlocks, index: 1}
	first := Addr(3) // after superblock, index and reference count tree
	for i := range bitmaps {
		m.bitmaps = append(m.bitmaps, first+Addr(i))
	}
	for a := Addr(0); a < first+Addr(bitmaps); a++ {
		m.grow(a)
		m.counts[a] = 1
		m.fresh.Add(uint64(a))
	}
	m.begin = first + Addr(bitmaps)
	m.publish()
	m.writesets = m.emptyTree(writesetWidth, true)
	m.array = m.emptyTree(pdata.ChildWidth, false)
	clear(m.fresh) // the first commit leaves the space map's transaction open
	return m
}

func (m *model) grow(a Addr) {
	for uint64(len(m.counts)) <= uint64(a) {
		m.counts = append(m.counts, make([]uint8, 4096)...)
	}
	for uint64(len(m.old))*64 <= uint64(a) {
		m.old = append(m.old, make(pdata.Bitmap, 64)...)
		m.fresh = append(m.fresh, make(pdata.Bitmap, 64)...)
	}
}

// take returns a new block with one reference. The kernel goes on where it last
// found one, and begins again from 0 at the end of the device.
func (m *model) take() Addr {
	a := m.begin
	for wrapped := false; ; a++ {
		if m.size != 0 && uint64(a) >= m.size {
			if wrapped {
				m.full = true
				return m.takeBeyond()
			}
			a, wrapped = 0, true
		}
		m.grow(a)
		if !m.old.Has(uint64(a)) && m.counts[a] == 0 {
			break
		}
	}
	return m.got(a)
}

// takeBeyond lets a full model go on with its work, without a limit.
func (m *model) takeBeyond() Addr {
	m.size = 0
	return m.take()
}

func (m *model) got(a Addr) Addr {
	m.begin = a + 1
	m.held++
	m.peak = max(m.peak, m.held)
	m.fresh.Add(uint64(a))
	m.counts[a] = reserved
	m.change(a, true)
	return a
}

// reserved is the count of a block that was found but is not counted yet.
const reserved = 255

// change changes a reference count and the bitmap that holds it. Copying a
// bitmap changes counts itself; those changes wait.
func (m *model) change(a Addr, inc bool) {
	m.queue = append(m.queue, bop{a, inc})
	if m.busy {
		return
	}
	m.busy = true
	for len(m.queue) > 0 {
		op := m.queue[0]
		m.queue = m.queue[1:]
		m.touch(uint64(op.at) / pdata.BitmapEntries)
		m.apply(op)
	}
	m.busy = false
}

func (m *model) apply(op bop) {
	switch {
	case m.counts[op.at] == reserved:
		m.counts[op.at] = 1
	case op.inc:
		m.counts[op.at]++
	default:
		m.counts[op.at]--
		if m.counts[op.at] == 0 && !m.old.Has(uint64(op.at)) {
			m.held--
		}
	}
}

func (m *model) touch(i uint64) {
	m.dirty = true
	if i < uint64(len(m.bitmaps)) {
		m.bitmaps[i], _ = m.shadow(m.bitmaps[i])
	}
}

// shadow returns the block to change in place of a; shared says that others
// still refer to a, so that its children have a further parent.
func (m *model) shadow(a Addr) (copied Addr, shared bool) {
	if m.fresh.Has(uint64(a)) && (m.counts[a] == 1 || m.counts[a] == reserved) {
		return a, false
	}
	shared = m.counts[a] > 1 && m.counts[a] != reserved
	copied = m.take()
	m.change(a, false)
	return copied, shared
}

// commit writes the index and ends the transaction.
func (m *model) commit() {
	if m.dirty {
		m.index, _ = m.shadow(m.index)
		m.dirty = false
	}
	m.publish()
	clear(m.fresh)
}

// publish makes what is free now available.
func (m *model) publish() {
	clear(m.old)
	m.held = 0
	for a, c := range m.counts {
		if c != 0 {
			m.old.Add(uint64(a))
			m.held++
		}
	}
	m.peak = max(m.peak, m.held)
	m.dirty = false
}

func (m *model) inUse() uint64 {
	n := uint64(0)
	for _, c := range m.counts {
		if c != 0 {
			n++
		}
	}
	return n
}

func (m *model) emptyTree(valueSize int, nested bool) Addr {
	a := m.take()
	m.nodes[a] = &modelNode{max: pdata.MaxEntries(valueSize), leaf: true, nested: nested}
	return a
}

// shadowNode is shadow for a btree node: a copy that shares its children counts
// them once more.
func (m *model) shadowNode(a Addr) Addr {
	n := m.nodes[a]
	copied, shared := m.shadow(a)
	if copied == a {
		return a
	}
	c := *n
	c.keys, c.values = slices.Clone(n.keys), slices.Clone(n.values)
	m.nodes[copied] = &c
	if shared {
		for _, v := range n.values {
			m.change(v, true)
		}
	} else {
		delete(m.nodes, a)
	}
	return copied
}

// insert puts a key above all others into a tree and returns its new root.
func (m *model) insert(root Addr, key uint64, value Addr) Addr {
	root = m.shadowNode(root)
	parent, at, index := (*modelNode)(nil), root, 0
	for {
		n := m.nodes[at]
		if len(n.keys) == n.max {
			if parent == nil {
				m.splitBeneath(n)
			} else {
				at = m.rebalanceOrSplit(parent, index, key)
				n = m.nodes[at]
			}
		}
		if n.leaf {
			i := sort.Search(len(n.keys), func(i int) bool { return n.keys[i] >= key })
			n.keys, n.values = slices.Insert(n.keys, i, key), slices.Insert(n.values, i, value)
			return root
		}
		index = max(0, sort.Search(len(n.keys), func(i int) bool { return n.keys[i] > key })-1)
		parent = n
		at = m.shadowNode(n.values[index])
		n.values[index] = at
	}
}

// splitBeneath gives a full root two children.
func (m *model) splitBeneath(n *modelNode) {
	left, right := *n, *n
	half := len(n.keys) / 2
	left.keys, left.values = slices.Clone(n.keys[:half]), slices.Clone(n.values[:half])
	right.keys, right.values = slices.Clone(n.keys[half:]), slices.Clone(n.values[half:])
	a, b := m.take(), m.take()
	m.nodes[a], m.nodes[b] = &left, &right
	*n = modelNode{max: pdata.MaxEntries(pdata.ChildWidth), keys: []uint64{left.keys[0], right.keys[0]}, values: []Addr{a, b}}
}

// spaceThreshold is how many free entries make the left sibling worth filling
// (SPACE_THRESHOLD).
const spaceThreshold = 8

// rebalanceOrSplit makes room in the full last child of parent and returns the
// node the key belongs in. Keys only ever go to the right end here, so the
// kernel's other cases do not arise.
func (m *model) rebalanceOrSplit(parent *modelNode, index int, key uint64) Addr {
	at := parent.values[index]
	n := m.nodes[at]
	if index > 0 && m.counts[parent.values[index-1]] == 1 {
		left := m.nodes[parent.values[index-1]]
		if left.max-len(left.keys) >= spaceThreshold {
			parent.values[index-1] = m.shadowNode(parent.values[index-1])
			m.fillLeft(m.nodes[parent.values[index-1]], n)
			parent.keys[index] = n.keys[0]
			return at
		}
	}
	right := *n
	half := len(n.keys) / 2
	right.keys, right.values = slices.Clone(n.keys[half:]), slices.Clone(n.values[half:])
	n.keys, n.values = n.keys[:half], n.values[:half]
	b := m.take()
	m.nodes[b] = &right
	parent.keys = slices.Insert(parent.keys, index+1, right.keys[0])
	parent.values = slices.Insert(parent.values, index+1, b)
	if key < right.keys[0] {
		return at
	}
	return b
}

// fillLeft moves entries so that both nodes have the same number.
func (m *model) fillLeft(left, right *modelNode) {
	move := (len(left.keys)+len(right.keys))/2 - len(left.keys)
	left.keys = append(left.keys, right.keys[:move]...)
	left.values = append(left.values, right.values[:move]...)
	right.keys, right.values = slices.Clone(right.keys[move:]), slices.Clone(right.values[move:])
}

// free drops a reference to a tree, and what only it refers to.
func (m *model) free(root Addr) {
	n := m.nodes[root]
	if m.counts[root] == 1 && n != nil {
		for _, v := range n.values {
			if !n.leaf || n.nested {
				m.free(v)
			} else {
				m.change(v, false)
			}
		}
		delete(m.nodes, root)
	}
	m.change(root, false)
}

// activate is what creating the device and resuming it does: three commits.
func (m *model) activate() {
	for i := range pdata.CeilDiv(m.nrBlocks, erasPerBlock) {
		m.array = m.insert(m.array, i, m.take())
	}
	m.commit()
	m.newEra()
	m.commit()
}

// newEra makes an empty writeset.
func (m *model) newEra() {
	m.era++
	m.current = m.emptyTree(pdata.ChildWidth, false)
	for i := range pdata.CeilDiv(m.nrBlocks, bitsPerBlock) {
		m.current = m.insert(m.current, i, m.take())
	}
}

// rollover archives the current writeset and begins another. Nothing is
// digested: how far the kernel gets before the next one depends on the machine.
func (m *model) rollover() {
	m.writesets = m.insert(m.writesets, m.era, m.current)
	m.newEra()
}

// takeSnapshot is the message take_metadata_snap.
func (m *model) takeSnapshot() {
	m.rollover()
	m.commit()
	m.change(0, true)
	m.snapshot = m.take()
	m.change(0, false)
	m.clone = [2]Addr{m.writesets, m.array}
	m.change(m.writesets, true)
	m.change(m.array, true)
	m.commit()
}

// dropSnapshot is the message drop_metadata_snap.
func (m *model) dropSnapshot() {
	m.free(m.clone[0])
	m.free(m.clone[1])
	m.change(m.snapshot, false)
	m.snapshot = 0
	m.commit()
}

// digest removes the oldest writeset, which had no bits. Its blocks are free
// after the next commit, which something else must cause.
func (m *model) digest() {
	m.writesets = m.shadowNode(m.writesets)
	n := m.nodes[m.writesets]
	oldest := n.values[0]
	n.keys, n.values = slices.Clone(n.keys[1:]), slices.Clone(n.values[1:])
	m.free(oldest)
}

// rewriteArray copies every block of the era array in one transaction, as the
// digestion of a full writeset does when nothing else commits.
func (m *model) rewriteArray() {
	m.array = m.rewrite(m.array)
	m.commit()
}

func (m *model) rewrite(at Addr) Addr {
	at = m.shadowNode(at)
	n := m.nodes[at]
	for i, v := range n.values {
		if n.leaf {
			n.values[i], _ = m.shadow(v)
		} else {
			n.values[i] = m.rewrite(v)
		}
	}
	return at
}

// snapshots takes and drops snapshots one after the other.
func (m *model) snapshots(count int, digested bool) {
	for range count {
		m.takeSnapshot()
		m.dropSnapshot()
		if digested {
			m.digest()
		}
	}
}

// worst is the largest need: eras wait, a snapshot holds one copy of the era
// array, the live one is another, and a transaction copies it once more.
func (m *model) worst(undigested int) {
	for range undigested {
		m.rollover()
		m.commit()
	}
	m.takeSnapshot()
	m.rewriteArray()
	m.rewriteArray()
}

// leastSize returns the smallest size in bytes with which the device can be
// created and then do what work does.
func leastSize(nrBlocks uint64, work func(*model)) int64 {
	run := func(size, bitmaps uint64) *model {
		m := newModel(size, bitmaps, nrBlocks)
		m.activate()
		work(m)
		return m
	}
	blocks := run(0, 1).peak
	for {
		// Which bitmaps a transaction touches depends on the size, and where the search
		// for a free block begins anew.
		if m := run(blocks, pdata.CeilDiv(blocks, pdata.BitmapEntries)); m.full || blocks%pdata.BitmapEntries == 0 {
			blocks = max(blocks+1, m.peak)
			continue
		}
		return int64(blocks) * BlockSize
	}
}
