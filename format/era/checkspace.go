package era

// spaceEntries returns how many bitmaps the space map must have, and how many
// blocks it can be compared for.
func (c *checker) spaceEntries() (bitmaps, blocks uint64) {
	blocks = min(c.m.super.SpaceMap.Blocks, c.m.dev.blocks)
	return ceilDiv(blocks, bitmapEntries), blocks
}

// countSpaceMap counts the references to the space map's own blocks.
func (c *checker) countSpaceMap() {
	root := c.m.super.SpaceMap
	c.countTree(root.RefCounts, 4, func([]byte) {})
	if c.m.dev.inside(root.Index, "") == nil {
		c.refs.add(root.Index)
	}
	buf := make([]byte, BlockSize)
	if err := c.m.dev.read(root.Index, kindIndex, buf); err != nil {
		c.hidden = true
		return // spaceMap reports it
	}
	n, _ := c.spaceEntries()
	for i := range n {
		if a := Addr(le.Uint64(buf[bitmapHeader+i*indexEntry:])); c.m.dev.inside(a, "") == nil {
			c.refs.add(a)
		}
	}
}

// Stored counts as the check keeps them: 0 to 2 as they are.
const (
	storedTree    = 3 // in the reference count tree, not met there yet
	storedDone    = 4 // in the reference count tree, compared
	storedUnknown = 5 // in a bitmap that cannot be read
)

// spaceMap compares the space map with the references counted.
func (c *checker) spaceMap() {
	root := c.m.super.SpaceMap
	index := make([]byte, BlockSize)
	if err := c.m.dev.read(root.Index, kindIndex, index); err != nil {
		c.spaceFault(err, "the space map is lost")
		return
	}
	bitmaps, blocks := c.spaceEntries()
	stored := make([]uint8, blocks)
	allocated, complete := uint64(0), true
	for i := range bitmaps {
		used, ok := c.bitmap(index[bitmapHeader+i*indexEntry:], i, stored)
		allocated += used
		complete = complete && ok
	}
	if complete && root.Blocks <= blocks && allocated != root.Allocated {
		c.minor(SeveritySpace, 0, "superblock", "%d allocated blocks, the space map has %d", root.Allocated, allocated)
	}
	c.bigCounts(stored)
	c.compare(stored)
}

func (c *checker) spaceFault(err error, effect string) {
	f := asFault(err)
	f.Severity, f.Effect = SeveritySpace, effect
	c.fault(f)
}

// bitmap reads bitmap i, whose index entry is e, into stored, and returns how
// many blocks it has in use. ok is false when it cannot be read.
func (c *checker) bitmap(e []byte, i uint64, stored []uint8) (used uint64, ok bool) {
	at := Addr(le.Uint64(e))
	part := stored[i*bitmapEntries : min((i+1)*bitmapEntries, uint64(len(stored)))]
	buf := make([]byte, BlockSize)
	if err := c.m.dev.read(at, kindBitmap, buf); err != nil {
		c.spaceFault(err, "counts of a range of blocks are lost")
		for k := range part {
			part[k] = storedUnknown
		}
		return 0, false
	}
	firstFree := uint32(bitmapEntries)
	for k := range bitmapEntries {
		raw := buf[bitmapHeader+k/4] >> (2 * (k % 4))
		count := raw&1<<1 | raw>>1&1
		if count != 0 {
			used++
		} else {
			firstFree = min(firstFree, uint32(k))
		}
		if k < len(part) {
			part[k] = count
		} else if count != 0 && c.m.super.SpaceMap.Blocks <= uint64(len(stored)) {
			c.minor(SeveritySpace, at, kindBitmap.String(), "entry %d is past the last block and not free", k)
		}
	}
	c.indexEntry(at, e, used, uint64(len(part)), firstFree)
	return used, true
}

// indexEntry checks the summary of a bitmap. The kernel counts the entries past
// the last block as free; a writer that does not is right as well.
func (c *checker) indexEntry(at Addr, e []byte, used, entries uint64, firstFree uint32) {
	free, before := uint64(le.Uint32(e[8:])), le.Uint32(e[12:])
	if free != bitmapEntries-used && free+used != entries {
		c.minor(SeveritySpace, at, kindBitmap.String(), "the index says %d free blocks, the bitmap has %d", free, bitmapEntries-used)
	}
	if before > firstFree {
		c.minor(SeverityMinor, at, kindBitmap.String(), "the index says none free before %d, but %d is", before, firstFree)
	}
}

// bigCounts compares the counts in the reference count tree.
func (c *checker) bigCounts(stored []uint8) {
	t := tree{dev: &c.m.dev, valueSize: 4, lost: func(keys span, f *Fault) error {
		for k := keys.lo; k < min(keys.hi, uint64(len(stored))); k++ {
			if stored[k] == storedTree {
				stored[k] = storedUnknown
			}
		}
		c.spaceFault(f, "reference counts are lost")
		return nil
	}}
	t.leaf = func(n node, i, j int) error {
		for ; i < j; i++ {
			c.bigCount(Addr(le.Uint64(n[8:])), n.key(i), le.Uint32(n.value(i)), stored)
		}
		return nil
	}
	if err := t.walk(c.m.super.SpaceMap.RefCounts, allKeys()); err != nil {
		c.fault(damage(0, "superblock", "%v", err)) // not reached: faults are no errors here
	}
}

func (c *checker) bigCount(at Addr, block uint64, count uint32, stored []uint8) {
	const o = "reference count tree"
	if block >= uint64(len(stored)) {
		c.minor(SeverityMinor, at, o, "counts block %d, which does not exist", block)
		return
	}
	switch stored[block] {
	case storedTree:
		stored[block] = storedDone
		if count < storedTree {
			c.minor(SeverityMinor, at, o, "count %d of block %d should be in the bitmap", count, block)
		}
		c.compareOne(block, block+1, count)
	case storedUnknown:
	default:
		c.minor(SeverityMinor, at, o, "counts block %d, whose bitmap says %d", block, stored[block])
	}
}

// compare reports where stored and counted references differ, neighbours with
// the same difference together.
func (c *checker) compare(stored []uint8) {
	for b := uint64(0); b < uint64(len(stored)); {
		end := b + 1
		for end < uint64(len(stored)) && stored[end] == stored[b] && c.refs.get(end) == c.refs.get(b) {
			end++
		}
		switch stored[b] {
		case storedDone, storedUnknown:
		case storedTree:
			c.minor(SeveritySpace, Addr(b), "metadata block", "blocks %d to %d have no count in the reference count tree", b, end-1)
		default:
			c.compareOne(b, end, uint32(stored[b]))
		}
		b = end
	}
}

// compareOne compares the count stored for the blocks [b, end).
func (c *checker) compareOne(b, end uint64, stored uint32) {
	found := c.refs.get(b)
	switch {
	case stored < found:
		c.minor(SeveritySpace, Addr(b), "metadata block", "blocks %d to %d are referred to %d times, the space map says %d: the kernel may overwrite them", b, end-1, found, stored)
	case stored > found && !c.hidden:
		c.minor(SeverityMinor, Addr(b), "metadata block", "blocks %d to %d are referred to %d times, the space map says %d: they are never freed", b, end-1, found, stored)
	}
}
