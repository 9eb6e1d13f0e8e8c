package pdata

// SpaceMapRoot is the part of a superblock that counts references.
type SpaceMapRoot struct {
	Blocks    uint64 `json:"blocks"`
	Allocated uint64 `json:"allocated"`
	Index     Addr   `json:"index"` // a block, or the root of a tree for data blocks
	RefCounts Addr   `json:"ref_counts"`
}

// RootSize is the size of a SpaceMapRoot in a superblock, in bytes.
const RootSize = 32

// DecodeRoot reads a SpaceMapRoot.
func DecodeRoot(b []byte) SpaceMapRoot {
	return SpaceMapRoot{
		Blocks: le.Uint64(b), Allocated: le.Uint64(b[8:]),
		Index: Addr(le.Uint64(b[16:])), RefCounts: Addr(le.Uint64(b[24:])),
	}
}

// Encode writes a SpaceMapRoot.
func (r SpaceMapRoot) Encode(b []byte) {
	le.PutUint64(b, r.Blocks)
	le.PutUint64(b[8:], r.Allocated)
	le.PutUint64(b[16:], uint64(r.Index))
	le.PutUint64(b[24:], uint64(r.RefCounts))
}

// Refs counts references to blocks: one byte a block, and a map for the few that need
// more.
type Refs struct {
	low  []uint8
	high map[uint64]uint32
}

// NewRefs returns counts of 0 for so many blocks.
func NewRefs(blocks uint64) Refs {
	return Refs{low: make([]uint8, blocks), high: map[uint64]uint32{}}
}

// Add counts a reference and says whether it is the first.
func (r Refs) Add(a uint64) bool {
	if r.low[a] == 255 {
		r.high[a]++
		return false
	}
	r.low[a]++
	return r.low[a] == 1
}

// Get returns the count of a block.
func (r Refs) Get(a uint64) uint32 { return uint32(r.low[a]) + r.high[a] }

// Len returns for how many blocks there are counts.
func (r Refs) Len() uint64 { return uint64(len(r.low)) }

// Used returns how many blocks are referred to.
func (r Refs) Used() (n uint64) {
	for _, c := range r.low {
		if c != 0 {
			n++
		}
	}
	return n
}

// SpaceMap compares a space map with references that were found.
type SpaceMap struct {
	Dev    *Device
	Root   SpaceMapRoot
	Refs   Refs
	OfData bool   // the index is a tree, and messages tell of data blocks
	Where  string // the object that has the root, for messages
	// Lenient takes sums that are on the safe side, fewer free blocks than there are, for
	// sound: thin_restore 0.9 writes such.
	Lenient bool
	// Hidden says that a fault hides references: a stored count that is larger than what was
	// found means nothing then.
	Hidden func() bool
	// Report gets each fault.
	Report func(*Fault)

	buf []byte
}

func (c *SpaceMap) minor(s Severity, a Addr, object, format string, args ...any) {
	f := c.Dev.Damage(a, object, format, args...)
	f.Severity = s
	c.Report(f)
}

// sizes returns how many bitmaps the space map must have, and how many blocks it can be
// compared for.
func (c *SpaceMap) sizes() (bitmaps, blocks uint64) {
	blocks = min(c.Root.Blocks, c.Refs.Len())
	return CeilDiv(blocks, BitmapEntries), blocks
}

// Entries calls each for the entry of every bitmap, in order, with its number. A fault ends it.
func (c *SpaceMap) Entries(each func(i uint64, entry []byte)) error {
	bitmaps, _ := c.sizes()
	if !c.OfData {
		index := Buffer(1)
		if err := c.Dev.Read(c.Root.Index, Index, index); err != nil {
			return err
		}
		for i := range bitmaps {
			each(i, index[bitmapHeader+i*indexEntry:][:indexEntry])
		}
		return nil
	}
	next := uint64(0)
	t := Tree{Dev: c.Dev, ValueSize: indexEntry}
	t.Leaf = func(n TreeNode, i, j int) error {
		for ; i < j; i++ {
			if n.Key(i) != next {
				return c.Dev.Damage(Addr(le.Uint64(n[8:])), "space map index", "the entry of bitmap %d is missing", next)
			}
			each(next, n.Value(i))
			next++
		}
		return nil
	}
	if err := t.Walk(c.Root.Index, Span{0, bitmaps}); err != nil {
		return err
	}
	if next < bitmaps {
		return c.Dev.Damage(min(c.Root.Index, MaxMetadataBlocks), "space map index", "it has %d bitmaps, and needs %d", next, bitmaps)
	}
	return nil
}

// BitmapAt returns where the bitmap of an entry is.
func BitmapAt(entry []byte) Addr { return Addr(le.Uint64(entry)) }

// Stored counts as a comparison keeps them: 0 to 2 as they are.
const (
	storedTree    = 3 // in the reference count tree, not met there yet
	storedDone    = 4 // in the reference count tree, compared
	storedUnknown = 5 // in a bitmap that cannot be read
)

// Compare compares the space map with the references found.
func (c *SpaceMap) Compare() {
	_, blocks := c.sizes()
	stored := make([]uint8, blocks)
	allocated, complete := uint64(0), true
	c.buf = Buffer(1)
	err := c.Entries(func(i uint64, entry []byte) {
		used, ok := c.bitmap(entry, i, stored)
		allocated += used
		complete = complete && ok
	})
	if err != nil {
		c.spaceFault(err, "the space map is lost")
		return
	}
	safe := c.Lenient && allocated < c.Root.Allocated
	if complete && c.Root.Blocks <= blocks && allocated != c.Root.Allocated && !safe {
		c.minor(Space, 0, c.Where, "%d allocated blocks, the space map has %d", c.Root.Allocated, allocated)
	}
	c.bigCounts(stored)
	c.compare(stored)
}

func (c *SpaceMap) spaceFault(err error, effect string) {
	f := AsFault(err)
	f.Severity, f.Effect = Space, effect
	c.Report(f)
}

// bitmap reads bitmap i, whose index entry is e, into stored, and returns how many blocks
// it has in use. ok is false when it cannot be read.
func (c *SpaceMap) bitmap(e []byte, i uint64, stored []uint8) (used uint64, ok bool) {
	at := BitmapAt(e)
	part := stored[i*BitmapEntries : min((i+1)*BitmapEntries, uint64(len(stored)))]
	if err := c.Dev.Read(at, Bits, c.buf); err != nil {
		c.spaceFault(err, "counts of a range of blocks are lost")
		for k := range part {
			part[k] = storedUnknown
		}
		return 0, false
	}
	firstFree := uint32(BitmapEntries)
	for k := range BitmapEntries {
		raw := c.buf[bitmapHeader+k/4] >> (2 * (k % 4))
		count := raw&1<<1 | raw>>1&1
		if count != 0 {
			used++
		} else {
			firstFree = min(firstFree, uint32(k))
		}
		if k < len(part) {
			part[k] = count
		} else if count != 0 && c.Root.Blocks <= uint64(len(stored)) {
			c.minor(Space, at, Bits.String(), "entry %d is past the last block and not free", k)
		}
	}
	c.indexEntry(at, e, used, uint64(len(part)), firstFree)
	return used, true
}

// indexEntry checks the summary of a bitmap. The kernel counts the entries past the last
// block as free; a writer that does not is right as well.
func (c *SpaceMap) indexEntry(at Addr, e []byte, used, entries uint64, firstFree uint32) {
	free, before := uint64(le.Uint32(e[8:])), le.Uint32(e[12:])
	safe := c.Lenient && free+used < entries
	if free != BitmapEntries-used && free+used != entries && !safe {
		c.minor(Space, at, Bits.String(), "the index says %d free blocks, the bitmap has %d", free, BitmapEntries-used)
	}
	if before > firstFree && !c.Lenient {
		c.minor(Minor, at, Bits.String(), "the index says none free before %d, but %d is", before, firstFree)
	}
}

// bigCounts compares the counts in the reference count tree.
func (c *SpaceMap) bigCounts(stored []uint8) {
	t := Tree{Dev: c.Dev, ValueSize: countWidth, Lost: func(keys Span, f *Fault) error {
		for k := keys.Lo; k < min(keys.Hi, uint64(len(stored))); k++ {
			if stored[k] == storedTree {
				stored[k] = storedUnknown
			}
		}
		c.spaceFault(f, "reference counts are lost")
		return nil
	}}
	t.Leaf = func(n TreeNode, i, j int) error {
		for ; i < j; i++ {
			c.bigCount(Addr(le.Uint64(n[8:])), n.Key(i), le.Uint32(n.Value(i)), stored)
		}
		return nil
	}
	if err := t.Walk(c.Root.RefCounts, AllKeys()); err != nil {
		c.Report(c.Dev.Damage(0, c.Where, "%v", err)) // not reached: faults are no errors here
	}
}

func (c *SpaceMap) bigCount(at Addr, block uint64, count uint32, stored []uint8) {
	const o = "reference count tree"
	if block >= uint64(len(stored)) {
		c.minor(Minor, at, o, "counts block %d, which does not exist", block)
		return
	}
	switch stored[block] {
	case storedTree:
		stored[block] = storedDone
		if count < storedTree {
			c.minor(Minor, at, o, "count %d of block %d should be in the bitmap", count, block)
		}
		c.compareOne(block, block+1, count)
	case storedUnknown:
	default:
		c.minor(Minor, at, o, "counts block %d, whose bitmap says %d", block, stored[block])
	}
}

// compare reports where stored and counted references differ, neighbours with the same
// difference together.
func (c *SpaceMap) compare(stored []uint8) {
	for b := uint64(0); b < uint64(len(stored)); {
		end := b + 1
		for end < uint64(len(stored)) && stored[end] == stored[b] && c.Refs.Get(end) == c.Refs.Get(b) {
			end++
		}
		switch stored[b] {
		case storedDone, storedUnknown:
		case storedTree:
			at, o := c.place(b)
			c.minor(Space, at, o, "blocks %d to %d have no count in the reference count tree", b, end-1)
		default:
			c.compareOne(b, end, uint32(stored[b]))
		}
		b = end
	}
}

// place says where a fault of a block lies: a data block lies in no metadata.
func (c *SpaceMap) place(b uint64) (Addr, string) {
	if c.OfData {
		return min(c.Root.Index, MaxMetadataBlocks), "data block"
	}
	return Addr(b), "metadata block"
}

// compareOne compares the count stored for the blocks [b, end).
func (c *SpaceMap) compareOne(b, end uint64, stored uint32) {
	found := c.Refs.Get(b)
	at, o := c.place(b)
	switch {
	case stored < found:
		c.minor(Space, at, o, "blocks %d to %d are referred to %d times, the space map says %d: the kernel may overwrite them", b, end-1, found, stored)
	case stored > found && !c.Hidden():
		c.minor(Minor, at, o, "blocks %d to %d are referred to %d times, the space map says %d: they are never freed", b, end-1, found, stored)
	}
}

// Counter counts the references of trees, to metadata blocks.
type Counter struct {
	Dev    *Device
	Refs   Refs
	Report func(*Fault) // gets faults
	Hidden bool         // a fault hides references
}

// Block counts a reference to a block, if it can be one, and says whether it is the first.
func (c *Counter) Block(a Addr) bool { return c.Dev.Inside(a, "") == nil && c.Refs.Add(uint64(a)) }

// Tree counts a reference to the root and, when it is the first, all that is below. leaf sees
// the leaves.
func (c *Counter) Tree(root Addr, valueSize int, leaf func(n TreeNode, i, j int)) {
	t := Tree{Dev: c.Dev, ValueSize: valueSize, Seen: c.Shape}
	t.Enter = func(a Addr) bool { return c.Dev.Inside(a, "") != nil || c.Refs.Add(uint64(a)) }
	t.Leaf = func(n TreeNode, i, j int) error {
		leaf(n, i, j)
		return nil
	}
	t.Lost = func(_ Span, f *Fault) error {
		c.Hidden = true
		c.Report(f)
		return nil
	}
	if err := t.Walk(root, AllKeys()); err != nil {
		c.Report(c.Dev.Damage(0, "superblock", "%v", err)) // not reached: faults are no errors here
	}
}

// Array counts the references of an array.
func (c *Counter) Array(root Addr) {
	c.Tree(root, ChildWidth, func(n TreeNode, i, j int) {
		for ; i < j; i++ {
			c.Block(Addr(n.Value64(i)))
		}
	})
}

// SpaceMap counts the references to a space map's own blocks.
func (c *Counter) SpaceMap(m *SpaceMap) {
	c.Tree(m.Root.RefCounts, countWidth, func(TreeNode, int, int) {})
	if m.OfData {
		c.Tree(m.Root.Index, indexEntry, func(n TreeNode, i, j int) {
			for ; i < j; i++ {
				c.Block(BitmapAt(n.Value(i)))
			}
		})
		return
	}
	c.Block(m.Root.Index)
	if err := m.Entries(func(_ uint64, entry []byte) { c.Block(BitmapAt(entry)) }); err != nil {
		c.Hidden = true // Compare reports it
	}
}

// Shape checks what the kernel keeps to and reading does not need.
func (c *Counter) Shape(a Addr, n TreeNode, root bool) {
	if m := MaxEntries(n.ValueSize()); n.MaxEntries() != m {
		c.minor(a, "room for %d entries, the kernel makes it %d", n.MaxEntries(), m)
	}
	if !root && n.Entries() < n.MaxEntries()/3 {
		c.minor(a, "%d entries, less than a third of %d", n.Entries(), n.MaxEntries())
	}
}

func (c *Counter) minor(a Addr, format string, args ...any) {
	f := c.Dev.Damage(a, "btree node", format, args...)
	f.Severity = Minor
	c.Report(f)
}
