package pdata

import (
	"errors"
	"fmt"
	"io"
)

// ErrNoSpace says that metadata does not fit in its target.
var ErrNoSpace = errors.New("metadata device is too small")

// Writer writes new metadata: array blocks and trees in the order they come, then the
// space map. No reference is shared, and every block from 0 on is in use once, up to the
// last that is needed. The superblock is the caller's.
type Writer struct {
	Name string // begins messages

	w      io.WriterAt
	blocks uint64 // of the target
	next   Addr   // first block not handed out
	run    []byte // blocks handed out and not yet written, the last next-1
}

// NewWriter returns a Writer for the first size bytes of w.
func NewWriter(w io.WriterAt, size int64, name string) *Writer {
	blocks := min(uint64(max(size, 0))/BlockSize, MaxMetadataBlocks)
	return &Writer{Name: name, w: w, blocks: blocks, next: 1, run: Buffer(runBlocks)[:0]}
}

// Fits fails early, with ErrNoSpace, when n more blocks cannot fit.
func (b *Writer) Fits(n uint64) error {
	if need := uint64(b.next) + n; need > b.blocks {
		return fmt.Errorf("%s: needs %d blocks or more, the target has %d: %w", b.Name, need, b.blocks, ErrNoSpace)
	}
	return nil
}

// Zero zeroes the superblock: from here on until WriteSuper there is no metadata.
func (b *Writer) Zero() error {
	_, err := b.w.WriteAt(Buffer(1), 0)
	return err
}

// WriteSuper writes all that was handed out, and then the superblock, in aligned memory. The
// blocks are synced before the superblock that makes them metadata is written.
func (b *Writer) WriteSuper(super []byte) error {
	if err := b.flush(); err != nil {
		return err
	}
	if err := b.sync(); err != nil {
		return err
	}
	if _, err := b.w.WriteAt(super, 0); err != nil {
		return err
	}
	return b.sync()
}

func (b *Writer) sync() error {
	if s, ok := b.w.(interface{ Sync() error }); ok {
		return s.Sync()
	}
	return nil
}

// alloc returns the next block, zeroed. It must be filled and sealed before the
// next call.
func (b *Writer) alloc() (Addr, []byte, error) {
	if err := b.Fits(1); err != nil {
		return 0, nil, err
	}
	if len(b.run) == cap(b.run) {
		if err := b.flush(); err != nil {
			return 0, nil, err
		}
	}
	at := len(b.run)
	b.run = b.run[:at+BlockSize]
	clear(b.run[at:])
	b.next++
	return b.next - 1, b.run[at:], nil
}

func (b *Writer) flush() error {
	if len(b.run) == 0 {
		return nil
	}
	from := b.next - Addr(len(b.run)/BlockSize)
	_, err := b.w.WriteAt(b.run, from.Offset())
	b.run = b.run[:0]
	return err
}

// ArrayWriter packs values into array blocks.
type ArrayWriter struct {
	b     *Writer
	width int
	addrs []Addr
	block []byte // the open one, nil when none
	n     int    // values in it
}

// Array begins an array of values of so many bytes.
func (b *Writer) Array(width int) ArrayWriter { return ArrayWriter{b: b, width: width} }

// Slot returns the place of the next value.
func (w *ArrayWriter) Slot() ([]byte, error) {
	if w.n == PerBlock(w.width) {
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

func (w *ArrayWriter) close() {
	if w.block == nil {
		return
	}
	le.PutUint32(w.block[4:], uint32(PerBlock(w.width)))
	le.PutUint32(w.block[8:], uint32(w.n))
	le.PutUint32(w.block[12:], uint32(w.width))
	Seal(ArrayBlock, w.addrs[len(w.addrs)-1], w.block)
	w.block, w.n = nil, 0
}

// Root writes the tree over the blocks and returns its root.
func (w *ArrayWriter) Root() (Addr, error) {
	w.close()
	return w.b.Tree(ChildWidth, len(w.addrs), func(i int, value []byte) uint64 {
		le.PutUint64(value, uint64(w.addrs[i]))
		return uint64(i)
	})
}

// Tree writes a btree of n ascending entries and returns its root. put stores
// the value of entry i and returns its key.
func (b *Writer) Tree(valueSize, n int, put func(i int, value []byte) uint64) (Addr, error) {
	return b.level(nodeLeaf, valueSize, n, put)
}

type child struct {
	key  uint64
	addr Addr
}

// level writes one level of a btree and those above it. The entries are spread
// evenly, so that all nodes are at least half full: tools 1.x call a node less
// than a third full damaged.
func (b *Writer) level(flag uint32, valueSize, n int, put func(i int, value []byte) uint64) (Addr, error) {
	perNode := MaxEntries(valueSize)
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
	return b.level(nodeInternal, ChildWidth, nodes, func(i int, value []byte) uint64 {
		le.PutUint64(value, uint64(children[i].addr))
		return children[i].key
	})
}

func (b *Writer) node(flag uint32, valueSize, first, count int, put func(i int, value []byte) uint64) (child, error) {
	at, buf, err := b.alloc()
	if err != nil {
		return child{}, err
	}
	le.PutUint32(buf[4:], flag)
	le.PutUint32(buf[16:], uint32(count))
	le.PutUint32(buf[20:], uint32(MaxEntries(valueSize)))
	le.PutUint32(buf[24:], uint32(valueSize))
	n := TreeNode(buf)
	for i := range count {
		le.PutUint64(buf[nodeHeader+8*i:], put(first+i, n.Value(i)))
	}
	c := child{addr: at}
	if count > 0 {
		c.key = n.Key(0)
	}
	Seal(Node, at, buf)
	return c, nil
}

// SpaceMap writes the space map: everything handed out, the map included, is
// in use once.
func (b *Writer) SpaceMap() (SpaceMapRoot, error) {
	bitmaps := CeilDiv(b.blocks, BitmapEntries)
	if err := b.Fits(bitmaps + 2); err != nil {
		return SpaceMapRoot{}, err
	}
	refs, err := b.Tree(countWidth, 0, nil)
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
		Seal(Bits, at, buf)
	}
	index, buf, err := b.alloc()
	if err != nil {
		return SpaceMapRoot{}, err
	}
	for i := range bitmaps {
		e := buf[bitmapHeader+i*indexEntry:]
		n := usedIn(used, i)
		le.PutUint64(e, uint64(first)+i)
		le.PutUint32(e[8:], uint32(BitmapEntries-n))
		le.PutUint32(e[12:], uint32(n))
	}
	Seal(Index, index, buf)
	return SpaceMapRoot{Blocks: b.blocks, Allocated: used, Index: index, RefCounts: refs}, nil
}

// usedIn returns how many of the first used blocks bitmap i counts.
func usedIn(used, i uint64) uint64 {
	return min(max(used, i*BitmapEntries)-i*BitmapEntries, BitmapEntries)
}
