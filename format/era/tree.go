package era

// tree walks a btree in key order. It keeps one buffer for each level, so a
// walk allocates nothing once it is warm.
//
// A walk ends: a node is entered only when its keys lie in the range its parent
// gave it, the ranges of siblings are disjoint, every node but the root has a
// key, and depth is limited.
type tree struct {
	dev       *device
	valueSize int
	bufs      [maxDepth]node
	leafDepth int

	// enter, when set, is asked before a node is read; false skips it and
	// all that is below it.
	enter func(Addr) bool
	// node, when set, sees each node that was read, before its children.
	node func(a Addr, n node, root bool)
	// leaf sees the entries i to j-1 of each leaf, those with wanted keys.
	leaf func(n node, i, j int) error
	// lost gets the wanted keys that a fault hides. When it is nil a fault
	// ends the walk.
	lost func(keys span, f *Fault) error
}

// walk visits all leaves that may hold wanted keys.
func (t *tree) walk(root Addr, want span) error {
	t.leafDepth = -1
	return t.visit(root, 0, allKeys(), want)
}

func (t *tree) visit(a Addr, depth int, bound, want span) error {
	if t.enter != nil && !t.enter(a) {
		return nil
	}
	n, err := t.load(a, depth, bound)
	if err != nil {
		return t.lose(bound.clip(want), err)
	}
	if t.node != nil {
		t.node(a, n, depth == 0)
	}
	if n.leaf() {
		return t.leaf(n, n.search(want.lo), n.search(want.hi))
	}
	for i := range n.entries() {
		child := span{n.key(i), bound.hi}
		if i+1 < n.entries() {
			child.hi = n.key(i + 1)
		}
		if child.clip(want).empty() {
			continue
		}
		if err := t.visit(Addr(n.value64(i)), depth+1, child, want); err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) lose(keys span, err error) error {
	f := asFault(err)
	if f == nil || t.lost == nil {
		return err
	}
	return t.lost(keys, f)
}

// load reads and checks one node into its level's buffer.
func (t *tree) load(a Addr, depth int, bound span) (node, error) {
	if depth == maxDepth {
		return nil, damage(min(a, MaxMetadataBlocks), "btree node", "deeper than %d levels", maxDepth)
	}
	if t.bufs[depth] == nil {
		t.bufs[depth] = make(node, BlockSize)
	}
	n := t.bufs[depth]
	if err := t.dev.read(a, kindNode, n); err != nil {
		return nil, err
	}
	if err := checkNode(a, n, t.valueSize, depth == 0, bound); err != nil {
		return nil, err
	}
	if !n.leaf() {
		return n, nil
	}
	if t.leafDepth < 0 {
		t.leafDepth = depth
	}
	if depth != t.leafDepth {
		return nil, damage(a, "btree node", "leaf at level %d, others are at level %d", depth, t.leafDepth)
	}
	return n, nil
}
