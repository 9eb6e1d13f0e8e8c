package era

// arrayWriter packs values into array blocks.
type arrayWriter struct {
	b       *Builder
	width   int
	current int    // the writeset it belongs to
	given   uint64 // bits or eras

	addrs []Addr
	block []byte // the open one, nil when none
	n     int    // values in it
}

// slot returns the place of the next value.
func (w *arrayWriter) slot() ([]byte, error) {
	per := (BlockSize - arrayHeader) / w.width
	if w.n == per {
		w.close()
	}
	if w.block == nil {
		at, b, err := w.b.alloc()
		if err != nil {
			return nil, err
		}
		w.addrs, w.block = append(w.addrs, at), b
	}
	w.n++
	return w.block[arrayHeader+(w.n-1)*w.width:], nil
}

func (w *arrayWriter) close() {
	if w.block == nil {
		return
	}
	le.PutUint32(w.block[4:], uint32((BlockSize-arrayHeader)/w.width))
	le.PutUint32(w.block[8:], uint32(w.n))
	le.PutUint32(w.block[12:], uint32(w.width))
	seal(kindArray, w.addrs[len(w.addrs)-1], w.block)
	w.block, w.n = nil, 0
}

// root writes the tree over the blocks and returns its root.
func (w *arrayWriter) root() (Addr, error) {
	w.close()
	return w.b.tree(childWidth, len(w.addrs), func(i int, value []byte) uint64 {
		le.PutUint64(value, uint64(w.addrs[i]))
		return uint64(i)
	})
}

// tree writes a btree of n ascending entries and returns its root. put stores
// the value of entry i and returns its key.
func (b *Builder) tree(valueSize, n int, put func(i int, value []byte) uint64) (Addr, error) {
	return b.level(nodeLeaf, valueSize, n, put)
}

type child struct {
	key  uint64
	addr Addr
}

// level writes one level of a btree and those above it. The entries are spread
// evenly, so that all nodes are at least half full: tools 1.x call a node less
// than a third full damaged.
func (b *Builder) level(flag uint32, valueSize, n int, put func(i int, value []byte) uint64) (Addr, error) {
	perNode := maxEntries(valueSize)
	nodes := max(1, (n+perNode-1)/perNode)
	children := make([]child, 0, nodes)
	for i, first := 0, 0; i < nodes; i++ {
		count := (n - first + nodes - i - 1) / (nodes - i)
		c, err := b.node(flag, valueSize, first, count, put)
		if err != nil {
			return 0, err
		}
		children = append(children, c)
		first += count
	}
	if nodes == 1 {
		return children[0].addr, nil
	}
	return b.level(nodeInternal, childWidth, nodes, func(i int, value []byte) uint64 {
		le.PutUint64(value, uint64(children[i].addr))
		return children[i].key
	})
}

func (b *Builder) node(flag uint32, valueSize, first, count int, put func(i int, value []byte) uint64) (child, error) {
	at, buf, err := b.alloc()
	if err != nil {
		return child{}, err
	}
	le.PutUint32(buf[4:], flag)
	le.PutUint32(buf[16:], uint32(count))
	le.PutUint32(buf[20:], uint32(maxEntries(valueSize)))
	le.PutUint32(buf[24:], uint32(valueSize))
	n := node(buf)
	for i := range count {
		le.PutUint64(buf[nodeHeader+8*i:], put(first+i, n.value(i)))
	}
	c := child{addr: at}
	if count > 0 {
		c.key = n.key(0)
	}
	seal(kindNode, at, buf)
	return c, nil
}

// spaceMap writes the space map: everything handed out, the map included, is
// in use once.
func (b *Builder) spaceMap() (SpaceMapRoot, error) {
	bitmaps := ceilDiv(b.blocks, bitmapEntries)
	if err := b.fits(bitmaps + 2); err != nil {
		return SpaceMapRoot{}, err
	}
	refs, err := b.tree(4, 0, nil)
	if err != nil {
		return SpaceMapRoot{}, err
	}
	first := b.next
	used := uint64(first) + bitmaps + 1
	for i := range bitmaps {
		at, buf, err := b.alloc()
		if err != nil {
			return SpaceMapRoot{}, err
		}
		for e := range usedIn(used, i) {
			buf[bitmapHeader+e/4] |= 2 << (2 * (e % 4)) // a count of 1: high bit first
		}
		seal(kindBitmap, at, buf)
	}
	index, buf, err := b.alloc()
	if err != nil {
		return SpaceMapRoot{}, err
	}
	for i := range bitmaps {
		e := buf[bitmapHeader+i*indexEntry:]
		n := usedIn(used, i)
		le.PutUint64(e, uint64(first)+i)
		le.PutUint32(e[8:], uint32(bitmapEntries-n))
		le.PutUint32(e[12:], uint32(n))
	}
	seal(kindIndex, index, buf)
	return SpaceMapRoot{Blocks: b.blocks, Allocated: used, Index: index, RefCounts: refs}, nil
}

// usedIn returns how many of the first used blocks bitmap i counts.
func usedIn(used, i uint64) uint64 {
	return min(max(used, i*bitmapEntries)-i*bitmapEntries, bitmapEntries)
}
