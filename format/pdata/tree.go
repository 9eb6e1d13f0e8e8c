package pdata

// Tree walks a btree in key order. It keeps one buffer for each level, so a
// walk allocates nothing once it is warm.
//
// A walk ends: a node is entered only when its keys lie in the range its parent
// gave it, the ranges of siblings are disjoint, every node but the root has a
// key, and depth is limited.
type Tree struct {
	Dev       *Device
	ValueSize int // bytes of a value

	// Enter, when set, is asked before a node is read; false skips it and
	// all that is below it.
	Enter func(Addr) bool
	// Seen, when set, sees each node that was read, before its children.
	Seen func(a Addr, n TreeNode, root bool)
	// Leaf sees the entries i to j-1 of each leaf, those with wanted keys.
	Leaf func(n TreeNode, i, j int) error
	// Lost gets the wanted keys that a fault hides. When it is nil a fault
	// ends the walk.
	Lost func(keys Span, f *Fault) error

	root      bool // the walk begins at one
	bufs      [maxDepth]TreeNode
	leafDepth int
}

// Walk visits all leaves that may hold wanted keys.
func (t *Tree) Walk(root Addr, want Span) error {
	return t.WalkFrom(root, true, AllKeys(), want)
}

// WalkFrom is Walk from any node, the keys of which lie in bound.
func (t *Tree) WalkFrom(at Addr, root bool, bound, want Span) error {
	t.leafDepth, t.root = -1, root
	return t.visit(at, 0, bound, want)
}

func (t *Tree) visit(a Addr, depth int, bound, want Span) error {
	if t.Enter != nil && !t.Enter(a) {
		return nil
	}
	n, err := t.load(a, depth, bound)
	if err != nil {
		return t.lose(bound.Clip(want), err)
	}
	if t.Seen != nil {
		t.Seen(a, n, depth == 0)
	}
	if n.Leaf() {
		return t.Leaf(n, n.Search(want.Lo), n.Search(want.Hi))
	}
	for i := range n.Entries() {
		child := Span{n.Key(i), bound.Hi}
		if i+1 < n.Entries() {
			child.Hi = n.Key(i + 1)
		}
		if child.Clip(want).Empty() {
			continue
		}
		if err := t.visit(Addr(n.Value64(i)), depth+1, child, want); err != nil {
			return err
		}
	}
	return nil
}

func (t *Tree) lose(keys Span, err error) error {
	f := AsFault(err)
	if f == nil || t.Lost == nil {
		return err
	}
	return t.Lost(keys, f)
}

// load reads and checks one node into its level's buffer.
func (t *Tree) load(a Addr, depth int, bound Span) (TreeNode, error) {
	if depth == maxDepth {
		return nil, t.Dev.Damage(min(a, MaxMetadataBlocks), "btree node", "deeper than %d levels", maxDepth)
	}
	if t.bufs[depth] == nil {
		t.bufs[depth] = Buffer(1)
	}
	n := t.bufs[depth]
	if err := t.Dev.ReadNode(a, n, t.ValueSize, depth == 0 && t.root, bound); err != nil {
		return nil, err
	}
	if !n.Leaf() {
		return n, nil
	}
	if t.leafDepth < 0 {
		t.leafDepth = depth
	}
	if depth != t.leafDepth {
		return nil, t.Dev.Damage(a, "btree node", "leaf at level %d, others are at level %d", depth, t.leafDepth)
	}
	return n, nil
}
