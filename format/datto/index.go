package datto

import (
	"encoding/binary"
	"fmt"
	"iter"

	"github.com/RoaringBitmap/roaring/v2/roaring64"

	"tidemark/block"
	"tidemark/extent"
)

// Entry is a block that changed.
type Entry struct {
	Block int64 // of the device, in blocks
	Data  int64 // where the file has what it held, in bytes; 0: it was not kept
}

// Summary is what a COW file holds.
type Summary struct {
	Changed int64 `json:"changed"` // blocks
	Saved   int64 `json:"saved"`   // blocks of them of which the file has what they held
	// Untracked: the device ends in a short block for which the index has no entry, so that
	// nobody knows whether it changed.
	Untracked bool `json:"untracked_tail,omitempty"`
}

// Check holds the file against the size of its device in bytes, and against itself: the index
// fits in the file, names no block behind the end of the device, has as many blocks as the
// header says, and each block of data once. The error wraps ErrDamaged or ErrNotClean, and
// names the byte of the first fault.
func (f *File) Check(device int64) (Summary, error) {
	if err := f.Usable(); err != nil {
		return Summary{}, err
	}
	if device <= 0 || device > maxDevice {
		return Summary{}, fmt.Errorf("datto: a device of %d bytes cannot be", device)
	}
	l := layoutOf(device)
	if l.data() > f.size || f.header.IndexOnly && f.size != l.data() {
		return Summary{}, fmt.Errorf("datto: %w: it has %d bytes, and the index of a device of %d bytes ends at byte %d: it is of another device, or was cut off",
			ErrDamaged, f.size, device, l.data())
	}
	sum := Summary{Untracked: l.blocks > l.entries}
	data := roaring64.New()
	for e, err := range f.entries(l) {
		if err != nil {
			return Summary{}, err
		}
		if sum.Changed++; e.Data != 0 {
			sum.Saved++
		}
		if !f.header.IndexOnly && !data.CheckedAdd(uint64(e.Data)) {
			return Summary{}, f.fault(e.Block, "what it held is where another block's is")
		}
	}
	if h := f.header; h.Version >= 1 && uint64(sum.Changed) != h.Changed {
		return Summary{}, fmt.Errorf("datto: %w: its index has %d changed blocks, and its header says %d", ErrDamaged, sum.Changed, h.Changed)
	}
	return sum, nil
}

// Changed returns the bytes of the device that changed, and those of which that cannot be
// told. Check must have been called with the same size.
func (f *File) Changed(device int64) (extent.Set, error) {
	var b extent.Builder
	l := layoutOf(device)
	for e, err := range f.entries(l) {
		if err != nil {
			return extent.Set{}, err
		}
		b.Add(extent.Extent{Off: e.Block * BlockSize, Len: BlockSize})
	}
	if l.blocks > l.entries {
		b.Add(extent.Extent{Off: l.entries * BlockSize, Len: BlockSize})
	}
	return b.Set().Clip(extent.Extent{Len: device}), nil
}

// Entries returns the blocks that changed, in the order of the device. It reads the index as it
// goes. Check must have been called with the same size. Of a file of the incremental mode
// no entry has data.
func (f *File) Entries(device int64) iter.Seq2[Entry, error] { return f.entries(layoutOf(device)) }

func (f *File) entries(l layout) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		buf := block.AlignedBuffer(sectionSize)
		for at := int64(0); at < l.entries; at += sectionEntries {
			if err := readFull(f.r, buf, BlockSize+at*entrySize); err != nil {
				yield(Entry{}, fmt.Errorf("datto: index at byte %d: %w", BlockSize+at*entrySize, err))
				return
			}
			if block.IsZero(buf) {
				continue
			}
			for i := range int64(sectionEntries) {
				v := binary.LittleEndian.Uint64(buf[i*entrySize:])
				if v == 0 {
					continue
				}
				e, err := f.entry(l, at+i, v)
				if !yield(e, err) || err != nil {
					return
				}
			}
		}
	}
}

// entry judges one entry that is not zero.
func (f *File) entry(l layout, n int64, v uint64) (Entry, error) {
	switch first := uint64(l.data() / BlockSize); {
	case n >= l.blocks:
		return Entry{}, f.fault(n, fmt.Sprintf("the device has %d blocks", l.blocks))
	case f.header.IndexOnly && v > 1 && v < first:
		return Entry{}, f.fault(n, fmt.Sprintf("its value is %d, which can only be 1 or from %d on", v, first))
	case f.header.IndexOnly:
		return Entry{Block: n}, nil
	case v < first || v >= f.header.NextFree || v >= uint64(f.size/BlockSize):
		return Entry{}, f.fault(n, fmt.Sprintf("what it held is said to be in block %d of the file, and those are %d to %d",
			v, first, min(f.header.NextFree, uint64(f.size/BlockSize))))
	}
	return Entry{Block: n, Data: int64(v) * BlockSize}, nil
}

// fault is what is wrong with the entry of a block.
func (f *File) fault(n int64, problem string) error {
	return fmt.Errorf("datto: entry of block %d at byte %d: %w: %s", n, BlockSize+n*entrySize, ErrDamaged, problem)
}
