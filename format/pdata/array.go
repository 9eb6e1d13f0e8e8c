package pdata

import "fmt"

// runBlocks is how many neighbouring array blocks are read at once: 128 KiB.
const runBlocks = 32

// Array reads the blocks of an on-disk array in order.
type Array struct {
	Dev   *Device
	What  string // "era array" or "bitset", for messages
	Width int    // bytes of a value; one of 8 bytes is a word of a bitset
	// Seen holds the array blocks that were read: two places of one
	// consistent set of trees never share a block. Nil: not checked here.
	Seen Bitmap
	// Block gets each wanted array block: its index and its packed values.
	Block func(index uint64, values []byte) error
	// Lost gets the indexes of wanted blocks that cannot be read. When it
	// is nil the first fault ends the read.
	Lost func(index Span, f *Fault) error

	tree Tree
	buf  []byte

	data   uint64 // blocks of the data device that the values tell of
	length uint64 // values
	want   Span
	next   uint64
}

// NewArray returns an Array; block, and lost if there is to be one, are set by the caller.
func NewArray(dev *Device, what string, width int, seen Bitmap) *Array {
	a := &Array{Dev: dev, What: what, Width: width, Seen: seen}
	a.tree = Tree{Dev: dev, ValueSize: ChildWidth, Leaf: a.leaf, Lost: a.lostKeys}
	return a
}

func (a *Array) perBlock() uint64 { return uint64(PerBlock(a.Width)) }

// Read visits the array blocks in want of an array that tells of data blocks, each by a
// value or by a bit. Every wanted index reaches exactly one of block and lost, in
// ascending order.
func (a *Array) Read(root Addr, data uint64, want Span) error {
	a.data, a.length = data, data
	if a.Width == wordWidth {
		a.length = CeilDiv(data, 64)
	}
	blocks := CeilDiv(a.length, a.perBlock())
	a.want = want.Clip(Span{0, blocks})
	a.next = a.want.Lo
	if need := int(min(blocks, runBlocks)) * BlockSize; len(a.buf) < need {
		a.buf = Buffer(need / BlockSize)
	}
	if a.want.Empty() && blocks != 0 {
		return nil
	}
	if err := a.tree.Walk(root, a.want); err != nil {
		return err
	}
	return a.missing(min(root, MaxMetadataBlocks), a.want.Hi)
}

// missing reports that the tree names no blocks from next up to index.
func (a *Array) missing(at Addr, index uint64) error {
	if a.next >= index {
		return nil
	}
	return a.skip(index, a.Dev.Damage(at, a.What, "block %d of %d is missing", a.next, CeilDiv(a.length, a.perBlock())))
}

// skip gives up the blocks from next to index.
func (a *Array) skip(index uint64, f *Fault) error {
	gone := Span{a.next, min(index, a.want.Hi)}
	if gone.Empty() {
		return nil
	}
	a.next = gone.Hi
	return a.lose(gone, f)
}

func (a *Array) lose(index Span, f *Fault) error {
	if a.Lost == nil {
		return f
	}
	blocks := a.perBlock() // data blocks in each
	if a.Width == wordWidth {
		blocks = BitsPerBlock
	}
	if index.Empty() {
		return a.Lost(index, f)
	}
	f.Effect = fmt.Sprintf("%s, data blocks %d to %d", a.What, index.Lo*blocks, min(index.Hi*blocks, a.data)-1)
	return a.Lost(index, f)
}

func (a *Array) lostKeys(keys Span, f *Fault) error {
	if a.Lost == nil || a.want.Empty() { // an array of no elements has a root, too
		return a.lose(a.want, f)
	}
	return a.skip(keys.Hi, f)
}

// leaf reads the blocks of one leaf, neighbours together.
func (a *Array) leaf(n TreeNode, i, j int) error {
	for i < j {
		if err := a.missing(Addr(le.Uint64(n[8:])), n.Key(i)); err != nil {
			return err
		}
		k := i + 1
		for k < j && k-i < runBlocks && n.Value64(k) == n.Value64(k-1)+1 && n.Key(k) == n.Key(k-1)+1 {
			k++
		}
		if err := a.readRun(Addr(n.Value64(i)), k-i); err != nil {
			return err
		}
		i = k
	}
	return nil
}

// readRun reads count neighbours at once, or one by one when that fails.
func (a *Array) readRun(at Addr, count int) error {
	buf := a.buf[:count*BlockSize]
	whole := count > 1 && uint64(at)+uint64(count) <= a.Dev.Blocks && a.Dev.raw(at, ArrayBlock, buf) == nil
	for i := range count {
		b := buf[i*BlockSize : (i+1)*BlockSize]
		if err := a.one(at+Addr(i), b, whole); err != nil {
			return err
		}
	}
	return nil
}

func (a *Array) one(at Addr, b []byte, present bool) error {
	index := a.next
	a.next++
	values, err := a.load(at, index, b, present)
	if err != nil {
		f := AsFault(err)
		if f == nil {
			return err
		}
		return a.lose(Span{index, index + 1}, f)
	}
	return a.Block(index, values)
}

// load verifies one array block, reading it first unless it is present, and
// returns its values.
func (a *Array) load(at Addr, index uint64, b []byte, present bool) ([]byte, error) {
	if err := a.Dev.Inside(at, a.What); err != nil {
		return nil, err
	}
	if a.Seen != nil && !a.Seen.Add(uint64(at)) {
		return nil, a.Dev.Damage(at, a.What, "block %d is used twice", at)
	}
	if !present {
		if err := a.Dev.raw(at, ArrayBlock, b); err != nil {
			return nil, err
		}
	}
	if err := a.Dev.Verify(at, ArrayBlock, b); err != nil {
		return nil, err
	}
	return a.values(at, index, b)
}

// values checks the header of the array block with the given index.
func (a *Array) values(at Addr, index uint64, b []byte) ([]byte, error) {
	per := a.perBlock()
	want := min(per, a.length-index*per)
	if w := le.Uint32(b[12:]); w != uint32(a.Width) {
		return nil, a.Dev.Damage(at, a.What, "values of %d bytes, want %d", w, a.Width)
	}
	if m := le.Uint32(b[4:]); uint64(m) != per {
		return nil, a.Dev.Damage(at, a.What, "room for %d entries, want %d", m, per)
	}
	if n := le.Uint32(b[8:]); uint64(n) != want {
		return nil, a.Dev.Damage(at, a.What, "%d entries in block %d of the array, want %d", n, index, want)
	}
	return b[arrayHeader : arrayHeader+want*uint64(a.Width)], nil
}
