package pdata

import "sort"

// TreeNode is the content of a verified btree node.
type TreeNode []byte

func (n TreeNode) Internal() bool       { return le.Uint32(n[4:])&nodeInternal != 0 }
func (n TreeNode) Leaf() bool           { return le.Uint32(n[4:])&nodeLeaf != 0 }
func (n TreeNode) Entries() int         { return int(le.Uint32(n[16:])) }
func (n TreeNode) MaxEntries() int      { return int(le.Uint32(n[20:])) }
func (n TreeNode) ValueSize() int       { return int(le.Uint32(n[24:])) }
func (n TreeNode) Key(i int) uint64     { return le.Uint64(n[nodeHeader+8*i:]) }
func (n TreeNode) Value64(i int) uint64 { return le.Uint64(n.Value(i)) }

func (n TreeNode) Value(i int) []byte {
	at := nodeHeader + 8*n.MaxEntries() + n.ValueSize()*i
	return n[at : at+n.ValueSize()]
}

// Words returns the keys, and the values of a node whose values have 8 bytes: 8 bytes for each
// entry.
func (n TreeNode) Words() (keys, values []byte) {
	split := nodeHeader + 8*n.MaxEntries()
	return n[nodeHeader:split], n[split:]
}

// Search returns the first entry whose key is k or more.
func (n TreeNode) Search(k uint64) int {
	return sort.Search(n.Entries(), func(i int) bool { return n.Key(i) >= k })
}

// Span is a half-open range of keys.
type Span struct{ Lo, Hi uint64 }

// AllKeys holds every key that the formats can have.
func AllKeys() Span { return Span{0, 1<<64 - 1} }

// Clip returns the keys that are in both.
func (s Span) Clip(t Span) Span { return Span{max(s.Lo, t.Lo), min(s.Hi, t.Hi)} }

// Empty reports whether there is no key.
func (s Span) Empty() bool { return s.Lo >= s.Hi }

// ReadNode reads one node into n, a block, and checks it: its values have valueSize bytes, those
// of an internal node ChildWidth, and its keys lie in bound. Only a root may be empty.
func (d *Device) ReadNode(a Addr, n TreeNode, valueSize int, root bool, bound Span) error {
	if err := d.Read(a, Node, n); err != nil {
		return err
	}
	return d.checkNode(a, n, valueSize, root, bound)
}

// checkNode checks the header and the keys of a node that may hold the keys in
// bound. The order of the checks matters: an accessor is
// used only after the fields it relies on were checked.
func (d *Device) checkNode(a Addr, n TreeNode, valueSize int, root bool, bound Span) error {
	const o = "btree node"
	if n.Internal() == n.Leaf() {
		return d.Damage(a, o, "flags %#x are neither a leaf's nor an internal node's", le.Uint32(n[4:]))
	}
	want := valueSize
	if n.Internal() {
		want = ChildWidth
	}
	if got := le.Uint32(n[24:]); got != uint32(want) {
		return d.Damage(a, o, "values of %d bytes, want %d", got, want)
	}
	if m := le.Uint32(n[20:]); m == 0 || uint64(m)*uint64(8+want) > BlockSize-nodeHeader {
		return d.Damage(a, o, "room for %d entries does not fit in a block", m)
	}
	if e, m := le.Uint32(n[16:]), le.Uint32(n[20:]); e > m {
		return d.Damage(a, o, "%d entries, room for %d", e, m)
	}
	if n.Entries() == 0 && (!root || n.Internal()) {
		return d.Damage(a, o, "no entries")
	}
	return d.checkKeys(a, n, bound)
}

func (d *Device) checkKeys(a Addr, n TreeNode, bound Span) error {
	const o = "btree node"
	for i := range n.Entries() {
		k := n.Key(i)
		if i > 0 && k <= n.Key(i-1) {
			return d.Damage(a, o, "key %d of entry %d is not above %d", k, i, n.Key(i-1))
		}
		if k < bound.Lo || k >= bound.Hi {
			return d.Damage(a, o, "key %d of entry %d is outside its parent's range %d to %d", k, i, bound.Lo, bound.Hi-1)
		}
	}
	return nil
}
