package era

import "sort"

// node is the content of a verified btree node.
type node []byte

func (n node) internal() bool       { return le.Uint32(n[4:])&nodeInternal != 0 }
func (n node) leaf() bool           { return le.Uint32(n[4:])&nodeLeaf != 0 }
func (n node) entries() int         { return int(le.Uint32(n[16:])) }
func (n node) maxEntries() int      { return int(le.Uint32(n[20:])) }
func (n node) valueSize() int       { return int(le.Uint32(n[24:])) }
func (n node) key(i int) uint64     { return le.Uint64(n[nodeHeader+8*i:]) }
func (n node) value64(i int) uint64 { return le.Uint64(n.value(i)) }

func (n node) value(i int) []byte {
	at := nodeHeader + 8*n.maxEntries() + n.valueSize()*i
	return n[at : at+n.valueSize()]
}

// search returns the first entry whose key is k or more.
func (n node) search(k uint64) int {
	return sort.Search(n.entries(), func(i int) bool { return n.key(i) >= k })
}

// span is a half-open range of keys.
type span struct{ lo, hi uint64 }

// allKeys holds every key the format can have: eras and blocks have 32 bits,
// and metadata addresses fewer.
func allKeys() span { return span{0, 1<<64 - 1} }

func (s span) clip(t span) span { return span{max(s.lo, t.lo), min(s.hi, t.hi)} }
func (s span) empty() bool      { return s.lo >= s.hi }

// checkNode checks the header and the keys of a node that may hold the keys in
// bound. The order of the checks matters: an accessor is
// used only after the fields it relies on were checked.
func checkNode(a Addr, n node, valueSize int, root bool, bound span) error {
	const o = "btree node"
	if n.internal() == n.leaf() {
		return damage(a, o, "flags %#x are neither a leaf's nor an internal node's", le.Uint32(n[4:]))
	}
	want := valueSize
	if n.internal() {
		want = childWidth
	}
	if got := le.Uint32(n[24:]); got != uint32(want) {
		return damage(a, o, "values of %d bytes, want %d", got, want)
	}
	if m := le.Uint32(n[20:]); m == 0 || uint64(m)*uint64(8+want) > BlockSize-nodeHeader {
		return damage(a, o, "room for %d entries does not fit in a block", m)
	}
	if e, m := le.Uint32(n[16:]), le.Uint32(n[20:]); e > m {
		return damage(a, o, "%d entries, room for %d", e, m)
	}
	if n.entries() == 0 && (!root || n.internal()) {
		return damage(a, o, "no entries")
	}
	return checkKeys(a, n, bound)
}

func checkKeys(a Addr, n node, bound span) error {
	const o = "btree node"
	for i := range n.entries() {
		k := n.key(i)
		if i > 0 && k <= n.key(i-1) {
			return damage(a, o, "key %d of entry %d is not above %d", k, i, n.key(i-1))
		}
		if k < bound.lo || k >= bound.hi {
			return damage(a, o, "key %d of entry %d is outside its parent's range %d to %d", k, i, bound.lo, bound.hi-1)
		}
	}
	return nil
}
