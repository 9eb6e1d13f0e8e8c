package era

import "fmt"

// runBlocks is how many neighbouring array blocks are read at once: 128 KiB.
const runBlocks = 32

// array reads the blocks of an on-disk array in order.
type array struct {
	dev   *device
	what  string // "era array" or "bitset", for messages
	width int    // bytes of a value
	// seen holds the array blocks that were read: two places of one
	// consistent set of trees never share a block. Nil: not checked here.
	seen bitmap
	// block gets each wanted array block: its index and its packed values.
	block func(index uint64, values []byte) error
	// lost gets the indexes of wanted blocks that cannot be read. When it
	// is nil the first fault ends the read.
	lost func(index span, f *Fault) error

	tree tree
	buf  []byte

	data   uint64 // blocks of the data device that the values tell of
	length uint64 // values
	want   span
	next   uint64
}

func newArray(dev *device, what string, width int, seen bitmap) *array {
	a := &array{dev: dev, what: what, width: width, seen: seen}
	a.tree = tree{dev: dev, valueSize: childWidth, leaf: a.leaf, lost: a.lostKeys}
	return a
}

func (a *array) perBlock() uint64 { return uint64((BlockSize - arrayHeader) / a.width) }

// read visits the array blocks in want of an array that tells of data blocks, each by a
// value or by a bit. Every wanted index reaches exactly one of block and lost, in
// ascending order.
func (a *array) read(root Addr, data uint64, want span) error {
	a.data, a.length = data, data
	if a.width == wordWidth {
		a.length = ceilDiv(data, 64)
	}
	blocks := ceilDiv(a.length, a.perBlock())
	a.want = want.clip(span{0, blocks})
	a.next = a.want.lo
	if need := int(min(blocks, runBlocks)) * BlockSize; len(a.buf) < need {
		a.buf = make([]byte, need)
	}
	if a.want.empty() && blocks != 0 {
		return nil
	}
	if err := a.tree.walk(root, a.want); err != nil {
		return err
	}
	return a.missing(min(root, MaxMetadataBlocks), a.want.hi)
}

// missing reports that the tree names no blocks from next up to index.
func (a *array) missing(at Addr, index uint64) error {
	if a.next >= index {
		return nil
	}
	return a.skip(index, damage(at, a.what, "block %d of %d is missing", a.next, ceilDiv(a.length, a.perBlock())))
}

// skip gives up the blocks from next to index.
func (a *array) skip(index uint64, f *Fault) error {
	gone := span{a.next, min(index, a.want.hi)}
	if gone.empty() {
		return nil
	}
	a.next = gone.hi
	return a.lose(gone, f)
}

func (a *array) lose(index span, f *Fault) error {
	if a.lost == nil {
		return f
	}
	blocks := a.perBlock() // data blocks in each
	if a.width == wordWidth {
		blocks = bitsPerBlock
	}
	if index.empty() {
		return a.lost(index, f)
	}
	f.Effect = fmt.Sprintf("%s, data blocks %d to %d", a.what, index.lo*blocks, min(index.hi*blocks, a.data)-1)
	return a.lost(index, f)
}

func (a *array) lostKeys(keys span, f *Fault) error {
	if a.lost == nil || a.want.empty() { // an array of no elements has a root, too
		return a.lose(a.want, f)
	}
	return a.skip(keys.hi, f)
}

// leaf reads the blocks of one leaf, neighbours together.
func (a *array) leaf(n node, i, j int) error {
	for i < j {
		if err := a.missing(Addr(le.Uint64(n[8:])), n.key(i)); err != nil {
			return err
		}
		k := i + 1
		for k < j && k-i < runBlocks && n.value64(k) == n.value64(k-1)+1 && n.key(k) == n.key(k-1)+1 {
			k++
		}
		if err := a.readRun(Addr(n.value64(i)), k-i); err != nil {
			return err
		}
		i = k
	}
	return nil
}

// readRun reads count neighbours at once, or one by one when that fails.
func (a *array) readRun(at Addr, count int) error {
	buf := a.buf[:count*BlockSize]
	whole := count > 1 && uint64(at)+uint64(count) <= a.dev.blocks && a.dev.raw(at, kindArray, buf) == nil
	for i := range count {
		b := buf[i*BlockSize : (i+1)*BlockSize]
		if err := a.one(at+Addr(i), b, whole); err != nil {
			return err
		}
	}
	return nil
}

func (a *array) one(at Addr, b []byte, present bool) error {
	index := a.next
	a.next++
	values, err := a.load(at, index, b, present)
	if err != nil {
		f := asFault(err)
		if f == nil {
			return err
		}
		return a.lose(span{index, index + 1}, f)
	}
	return a.block(index, values)
}

// load verifies one array block, reading it first unless it is present, and
// returns its values.
func (a *array) load(at Addr, index uint64, b []byte, present bool) ([]byte, error) {
	if err := a.dev.inside(at, a.what); err != nil {
		return nil, err
	}
	if a.seen != nil && !a.seen.add(uint64(at)) {
		return nil, damage(at, a.what, "block %d is used twice", at)
	}
	if !present {
		if err := a.dev.raw(at, kindArray, b); err != nil {
			return nil, err
		}
	}
	if err := verify(at, kindArray, b); err != nil {
		return nil, err
	}
	return a.values(at, index, b)
}

// values checks the header of the array block with the given index.
func (a *array) values(at Addr, index uint64, b []byte) ([]byte, error) {
	per := a.perBlock()
	want := min(per, a.length-index*per)
	if w := le.Uint32(b[12:]); w != uint32(a.width) {
		return nil, damage(at, a.what, "values of %d bytes, want %d", w, a.width)
	}
	if m := le.Uint32(b[4:]); uint64(m) != per {
		return nil, damage(at, a.what, "room for %d entries, want %d", m, per)
	}
	if n := le.Uint32(b[8:]); uint64(n) != want {
		return nil, damage(at, a.what, "%d entries in block %d of the array, want %d", n, index, want)
	}
	return b[arrayHeader : arrayHeader+want*uint64(a.width)], nil
}
