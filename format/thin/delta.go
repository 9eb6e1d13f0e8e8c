package thin

import "tidemark/format/pdata"

// Kind says how a run of blocks is in two devices.
type Kind uint8

// Same blocks have the same data block in both devices, Different ones have another in each,
// and the others are mapped in one of them only.
const (
	Same Kind = iota + 1
	Different
	LeftOnly
	RightOnly
)

func (k Kind) String() string {
	return [...]string{"", "same", "different", "left_only", "right_only"}[k]
}

// Difference is a run of blocks that are alike in two devices. All are in data blocks.
type Difference struct {
	Kind        Kind
	Begin, Len  uint64
	Left, Right uint64 // the data block of the first, where the device has one
	LeftTime    uint32 // of the newest of the left device's blocks in a run that is not Same
}

// follows reports whether e is the next run, and the same as d.
func (d Difference) follows(e Difference) bool {
	return d.Len > 0 && d.Kind == e.Kind && d.Begin+d.Len == e.Begin &&
		(d.Kind == RightOnly || d.Left+d.Len == e.Left) && (d.Kind == LeftOnly || d.Right+d.Len == e.Right)
}

// Delta calls each for all blocks that are mapped in one of two devices, by the roots of
// their mappings, ascending; what follows one another in the devices and in the data is one
// run. Nodes that both share are read once, and with changedOnly not at all: Same runs are then
// left out.
func (v *View) Delta(left, right Addr, changedOnly bool, each func(Difference) error) error {
	d := delta{view: v, changedOnly: changedOnly, each: each}
	for i, root := range [2]Addr{left, right} {
		height, err := v.height(root)
		if err != nil {
			return err
		}
		d.sides[i] = side{dev: &v.dev}
		d.sides[i].stack = append(d.sides[i].stack, subtree{root, height, pdata.AllKeys(), true})
	}
	if err := d.run(); err != nil {
		return err
	}
	if d.open.Len == 0 {
		return nil
	}
	return each(d.open)
}

// height returns how many levels of nodes are below a root.
func (v *View) height(root Addr) (n int, err error) {
	buf := pdata.TreeNode(pdata.Buffer(1))
	for at := root; ; n++ {
		if n == maxHeight {
			return 0, ours.Damage(min(root, pdata.MaxMetadataBlocks), "btree node", "deeper than %d levels", maxHeight)
		}
		if err := v.dev.ReadNode(at, buf, mappingSize, n == 0, pdata.AllKeys()); err != nil {
			return 0, err
		}
		if buf.Leaf() {
			return n, nil
		}
		at = Addr(buf.Value64(0))
	}
}

const maxHeight = 16

// Highest returns the last block that a device maps, by the root of its mappings; ok is false when
// there is none.
func (v *View) Highest(root Addr) (block uint64, ok bool, err error) {
	n := pdata.TreeNode(pdata.Buffer(1))
	bound := pdata.AllKeys()
	for at, height := root, 0; height < maxHeight; height++ {
		if err := v.dev.ReadNode(at, n, mappingSize, height == 0, bound); err != nil {
			return 0, false, err
		}
		last := n.Entries() - 1
		switch {
		case last < 0:
			return 0, false, nil
		case n.Leaf():
			return n.Key(last), true, nil
		}
		at, bound.Lo = Addr(n.Value64(last)), n.Key(last)
	}
	return 0, false, ours.Damage(min(root, pdata.MaxMetadataBlocks), "btree node", "deeper than %d levels", maxHeight)
}

// subtree is a node that was not read yet.
type subtree struct {
	at     Addr
	height int
	keys   pdata.Span
	root   bool
}

// side is a walk through one device's mappings: subtrees in ascending order, the next one last,
// and in front of them what is left of a leaf.
type side struct {
	dev          *pdata.Device
	stack        []subtree
	keys, values []uint64 // what is left of the leaf that was entered, as it is stored
	buf          pdata.TreeNode
	leaf         [2][]uint64
}

// top returns the next subtree, when no leaf is entered.
func (s *side) top() *subtree {
	if len(s.keys) > 0 || len(s.stack) == 0 {
		return nil
	}
	return &s.stack[len(s.stack)-1]
}

// next returns the least key that may come; ok is false at the end.
func (s *side) next() (key uint64, ok bool) {
	if len(s.keys) > 0 {
		return s.keys[0], true
	}
	if len(s.stack) > 0 {
		return s.stack[len(s.stack)-1].keys.Lo, true
	}
	return 0, false
}

func (s *side) pop() { s.stack = s.stack[:len(s.stack)-1] }

// expand reads the next subtree and puts what it holds in its place.
func (s *side) expand() error {
	t := *s.top()
	if s.buf == nil {
		s.buf = pdata.Buffer(1)
	}
	if err := s.dev.ReadNode(t.at, s.buf, mappingSize, t.root, t.keys); err != nil {
		return err
	}
	n := s.buf
	if n.Leaf() != (t.height == 0) {
		return ours.Damage(t.at, "btree node", "a leaf and others are at different levels")
	}
	s.pop()
	count := n.Entries()
	if n.Leaf() {
		keys, values := n.Words()
		s.leaf[0], s.leaf[1] = s.leaf[0][:0], s.leaf[1][:0]
		for i := range count {
			s.leaf[0] = append(s.leaf[0], le.Uint64(keys[8*i:]))
			s.leaf[1] = append(s.leaf[1], le.Uint64(values[8*i:]))
		}
		s.keys, s.values = s.leaf[0], s.leaf[1]
		return nil
	}
	for i := count - 1; i >= 0; i-- {
		child := subtree{at: Addr(n.Value64(i)), height: t.height - 1, keys: pdata.Span{Lo: n.Key(i), Hi: t.keys.Hi}}
		if i+1 < count {
			child.keys.Hi = n.Key(i + 1)
		}
		s.stack = append(s.stack, child)
	}
	return nil
}

// delta walks two devices at once.
type delta struct {
	view        *View
	sides       [2]side
	changedOnly bool
	open        Difference
	each        func(Difference) error
}

// run compares until both sides have ended. A subtree is read only when the other side has
// nothing that may be the same one: of two that begin at the same key the higher, of two of
// one height that which begins first.
func (d *delta) run() error {
	a, b := &d.sides[0], &d.sides[1]
	for {
		ka, oka := a.next()
		kb, okb := b.next()
		if !oka && !okb {
			return nil
		}
		ta, tb := a.top(), b.top()
		var err error
		switch {
		case ta != nil && tb != nil && ta.at == tb.at && ta.keys.Lo == tb.keys.Lo:
			err = d.shared(*ta)
			a.pop()
			b.pop()
		case ta != nil && tb != nil && (ta.height > tb.height || ta.height == tb.height && ka <= kb):
			err = a.expand()
		case ta != nil && tb != nil:
			err = b.expand()
		case ta != nil && (!okb || ka <= kb):
			err = a.expand()
		case tb != nil && (!oka || kb <= ka):
			err = b.expand()
		default:
			err = d.entries(a, b)
		}
		if err != nil {
			return err
		}
	}
}

// shared takes a subtree that both have as the same.
func (d *delta) shared(t subtree) error {
	if d.changedOnly {
		return nil
	}
	return d.view.mappings(t, func(key, data uint64) error {
		return d.emit(Difference{Kind: Same, Begin: key, Len: 1, Left: data, Right: data})
	})
}

// entries compares what is left of leaves, up to where a subtree of the other side may begin.
func (d *delta) entries(a, b *side) error {
	for len(a.keys) > 0 || len(b.keys) > 0 {
		ka, oka := a.next()
		kb, okb := b.next()
		var one Difference
		switch {
		case oka && (!okb || ka < kb):
			if len(a.keys) == 0 {
				return nil
			}
			one = Difference{Kind: LeftOnly, Begin: ka, Len: 1, Left: a.values[0] >> timeBits, LeftTime: timeOf(a.values[0])}
			a.keys, a.values = a.keys[1:], a.values[1:]
		case !oka || kb < ka:
			if len(b.keys) == 0 {
				return nil
			}
			one = Difference{Kind: RightOnly, Begin: kb, Len: 1, Right: b.values[0] >> timeBits}
			b.keys, b.values = b.keys[1:], b.values[1:]
		case len(a.keys) == 0 || len(b.keys) == 0:
			return nil
		default:
			one = Difference{Kind: Different, Begin: ka, Len: 1, Left: a.values[0] >> timeBits, Right: b.values[0] >> timeBits, LeftTime: timeOf(a.values[0])}
			if one.Left == one.Right {
				one.Kind = Same
			}
			a.keys, a.values = a.keys[1:], a.values[1:]
			b.keys, b.values = b.keys[1:], b.values[1:]
		}
		if err := d.emit(one); err != nil {
			return err
		}
	}
	return nil
}

func (d *delta) emit(one Difference) error {
	if one.Kind == Same && d.changedOnly {
		return nil
	}
	if d.open.follows(one) {
		d.open.Len++
		d.open.LeftTime = max(d.open.LeftTime, one.LeftTime)
		return nil
	}
	last := d.open
	d.open = one
	if last.Len == 0 {
		return nil
	}
	return d.each(last)
}

// timeOf is the time at which the block of a stored mapping was given out.
func timeOf(value uint64) uint32 { return uint32(value & (1<<timeBits - 1)) }

// mappings calls each for every mapping below a subtree.
func (v *View) mappings(t subtree, each func(key, data uint64) error) error {
	w := pdata.Tree{Dev: &v.dev, ValueSize: mappingSize}
	w.Leaf = func(n pdata.TreeNode, i, j int) error {
		keys, values := n.Words()
		for ; i < j; i++ {
			if err := each(le.Uint64(keys[8*i:]), le.Uint64(values[8*i:])>>timeBits); err != nil {
				return err
			}
		}
		return nil
	}
	return w.WalkFrom(t.at, t.root, t.keys, t.keys)
}
