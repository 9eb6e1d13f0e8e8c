package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"tidemark/extent"
)

// The layout of a bitmap, shared with track.bpf.c. Element 0 is the header
// page: words the programs write, words user space writes, and from summaryOff
// on one bit for each page of the bitmap that is not empty. The other elements
// hold one bit a block.
//
// Where there are bytes for bits, the other elements hold one byte a block, 0 or 1. In the
// summary, a byte is 1 when one of eight pages is not empty: the byte where their bits would
// be. Of the word of flags that the programs write, a byte is a flag.
const (
	pageSize   = 4096
	pageBits   = pageSize * 8
	summaryOff = 2048
	maxPages   = 2048 * 8 // summary bits
	windowSize = 64       // pages mapped at a time, so that reading takes little memory

	// MaxBlocks is the largest number of blocks any bitmap can hold, in 64 MiB.
	MaxBlocks = maxPages * pageBits
)

// Lost is the set of things the programs saw that a bitmap cannot express.
type Lost uint64

// What Lost may hold; enum lost in track.bpf.c.
const (
	LostPassthrough Lost = 1  // a command that went around the block layer
	LostReplugged   Lost = 2  // another disk under the same number
	LostResized     Lost = 4  // the disk has not the size of the bitmap
	LostRange       Lost = 8  // a range beyond the bitmap
	LostAll         Lost = 16 // everything changed at once: not a loss, but no bits
	LostMerged      Lost = 32 // a snapshot is merged into the disk
)

// Header is the part of a bitmap's header page that user space writes. Package
// track/bpf gives it meaning.
type Header struct {
	Epoch        uint64
	BaseQueue    uint64 // Misses when the epoch began
	BaseComplete uint64
	Floor        uint64 // marks of epochs below are lost, because of FloorWhy
	FloorWhy     uint64 // Lost flags, or 0 for skipped events
	FloorMisses  uint64 // the skipped events
	Doubted      uint64 // last closed epoch in which completions may have been missed; 0 for none
	Opened       int64  // nanoseconds since 1970
	Active       bool   // was put in the slot
	Retired      bool   // is being, or was, taken out of the slot
	Closed       bool   // its end was dealt with
	// Counted is the most that the kernel was seen to have counted on the disk:
	// reads, sectors read, writes, sectors written.
	Counted [4]uint64
}

// word numbers in the header page
const (
	wordLost = iota
	wordDoubts
	wordEpoch
	wordBaseQueue
	wordBaseComplete
	wordFloor
	wordFloorWhy
	wordFloorMisses
	wordDoubted
	wordOpened
	wordActive
	wordRetired
	wordClosed
	wordCounted                   // and the three after it
	wordPlain   = wordCounted + 4 // 1: bytes for bits. Written once
)

// Bitmap is one bitmap of a disk, active or not.
type Bitmap struct {
	m    *ebpf.Map
	id   uint32
	page []byte // the header, mapped
}

// perPage is how many blocks a page holds.
func perPage(plain bool) uint64 {
	if plain {
		return pageSize
	}
	return pageBits
}

// MaxBlocks is the largest number of blocks that the bitmaps of these programs can hold, in 64 MiB.
func (f *Facility) MaxBlocks() uint64 { return maxPages * perPage(f.plain) }

// NewBitmap makes an empty bitmap for the given number of blocks, for these programs.
func (f *Facility) NewBitmap(blocks uint64) (*Bitmap, error) { return newBitmap(blocks, f.plain) }

func newBitmap(blocks uint64, plain bool) (*Bitmap, error) {
	n := perPage(plain)
	if blocks == 0 || blocks > maxPages*n {
		return nil, fmt.Errorf("bpf: a bitmap of %d blocks: at most %d", blocks, maxPages*n)
	}
	m, err := newMap(uint32((blocks+n-1)/n) + 1)
	if err != nil {
		return nil, explain(fmt.Errorf("make a bitmap of %d blocks: %w", blocks, err))
	}
	b, err := openBitmap(m)
	if err == nil {
		binary.LittleEndian.PutUint64(b.page[8*wordPlain:], flag(plain))
	}
	return b, err
}

func newMap(pages uint32) (*ebpf.Map, error) {
	if err := countNoMemory(); err != nil {
		return nil, err
	}
	return ebpf.NewMap(&ebpf.MapSpec{
		Name:       "tidemark",
		Type:       ebpf.Array,
		KeySize:    4,
		ValueSize:  pageSize,
		MaxEntries: pages,
		Flags:      unix.BPF_F_MMAPABLE | unix.BPF_F_INNER_MAP,
	})
}

// OpenBitmap opens a pinned bitmap. The error wraps fs.ErrNotExist when there
// is none.
func OpenBitmap(path string) (*Bitmap, error) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return nil, fmt.Errorf("bpf: open bitmap %s: %w", path, err)
	}
	return openBitmap(m)
}

func openBitmap(m *ebpf.Map) (*Bitmap, error) {
	id, err := mapID(m)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("bpf: bitmap: %w", err), m.Close())
	}
	if m.Type() != ebpf.Array || m.ValueSize() != pageSize || m.MaxEntries() < 2 {
		return nil, errors.Join(fmt.Errorf("bpf: %w: map %d is no bitmap", ErrBroken, id), m.Close())
	}
	page, err := unix.Mmap(m.FD(), 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("bpf: map the header of bitmap %d: %w", id, err), m.Close())
	}
	return &Bitmap{m: m, id: id, page: page}, nil
}

// ID returns the kernel's number of the map, as in [Facility.Active].
func (b *Bitmap) ID() uint32 { return b.id }

// Memory returns the kernel memory of the bitmap in bytes.
func (b *Bitmap) Memory() int64 { return int64(b.m.MaxEntries()) * pageSize }

// Pin makes the bitmap outlive this process, at a path in bpffs.
func (b *Bitmap) Pin(path string) error {
	if err := b.m.Pin(path); err != nil {
		return fmt.Errorf("bpf: pin bitmap: %w", err)
	}
	return nil
}

// Unpin removes the pin at path; a bitmap that is still in a slot or open
// lives on. It is no error when there is none.
func Unpin(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("bpf: unpin: %w", err)
	}
	return nil
}

// Close lets go of the bitmap.
func (b *Bitmap) Close() error {
	if b.page == nil {
		return nil
	}
	err := errors.Join(unix.Munmap(b.page), b.m.Close())
	b.page = nil
	return err
}

// plain reports whether there are bytes for bits.
func (b *Bitmap) plain() bool { return b.word(wordPlain) != 0 }

// Lost returns what the programs noted so far.
func (b *Bitmap) Lost() (lost Lost) {
	if !b.plain() {
		return Lost(b.word(wordLost))
	}
	for i, set := range b.page[8*wordLost : 8*wordLost+8] {
		lost |= Lost(set) << i
	}
	return lost
}

// Doubts returns how many completions could not be attributed so far.
func (b *Bitmap) Doubts() uint64 { return b.word(wordDoubts) }

// Header returns the words of user space.
func (b *Bitmap) Header() Header {
	return Header{
		Epoch:        b.word(wordEpoch),
		BaseQueue:    b.word(wordBaseQueue),
		BaseComplete: b.word(wordBaseComplete),
		Floor:        b.word(wordFloor),
		FloorWhy:     b.word(wordFloorWhy),
		FloorMisses:  b.word(wordFloorMisses),
		Doubted:      b.word(wordDoubted),
		Opened:       int64(b.word(wordOpened)),
		Active:       b.word(wordActive) != 0,
		Retired:      b.word(wordRetired) != 0,
		Closed:       b.word(wordClosed) != 0,
		Counted: [4]uint64{
			b.word(wordCounted), b.word(wordCounted + 1), b.word(wordCounted + 2), b.word(wordCounted + 3),
		},
	}
}

// SetHeader writes the words of user space. The words of the programs are not
// touched, so it may be called on an active bitmap.
func (b *Bitmap) SetHeader(h Header) {
	for i, v := range map[int]uint64{
		wordEpoch:        h.Epoch,
		wordBaseQueue:    h.BaseQueue,
		wordBaseComplete: h.BaseComplete,
		wordFloor:        h.Floor,
		wordFloorWhy:     h.FloorWhy,
		wordFloorMisses:  h.FloorMisses,
		wordDoubted:      h.Doubted,
		wordOpened:       uint64(h.Opened),
		wordActive:       flag(h.Active),
		wordRetired:      flag(h.Retired),
		wordClosed:       flag(h.Closed),
	} {
		binary.LittleEndian.PutUint64(b.page[8*i:], v)
	}
	for i, v := range h.Counted {
		binary.LittleEndian.PutUint64(b.page[8*(wordCounted+i):], v)
	}
}

func flag(v bool) uint64 {
	if v {
		return 1
	}
	return 0
}

func (b *Bitmap) word(i int) uint64 { return binary.LittleEndian.Uint64(b.page[8*i:]) }

// Set returns the marked blocks as bytes of a disk of the given size; block is
// the size of a block in bytes. Only pages with marks are read. Of a bitmap in
// a slot it returns at least what was marked before Swap put it there, if only
// again.
func (b *Bitmap) Set(block, size int64) (extent.Set, error) {
	if b.Lost()&LostAll != 0 {
		return extent.NewSet(extent.Extent{Len: size}), nil
	}
	var out extent.Builder
	pages, n := int(b.m.MaxEntries())-1, int(perPage(b.plain()))
	words := make([]uint64, windowSize*n/64)
	for first := 0; first < pages; first += windowSize {
		count := min(windowSize, pages-first)
		if !b.anyIn(first, count) {
			continue
		}
		if err := b.read(first, count, words); err != nil {
			return extent.Set{}, err
		}
		out.AddBits(words[:count*n/64], int64(first)*int64(n)*block, block)
	}
	return out.Set().Clip(extent.Extent{Len: size}), nil
}

// Mark marks the blocks that bytes of the disk lie in, as the programs do; block is the size of a
// block in bytes. The bitmap may be in a slot.
func (b *Bitmap) Mark(set extent.Set, block int64) error {
	pages, n := int64(b.m.MaxEntries())-1, int64(perPage(b.plain()))
	for _, e := range set.Extents() {
		first, last := e.Off/block, (e.End()-1)/block
		if e.Empty() || first < 0 || last >= pages*n {
			return fmt.Errorf("bpf: bitmap %d: mark %d bytes at %d: behind its end", b.id, e.Len, e.Off)
		}
		for page := first / n; page <= last/n; page++ {
			from, to := max(first-page*n, 0), min(last-page*n, n-1)
			if err := b.markPage(page, from, to); err != nil {
				return err
			}
		}
	}
	return nil
}

// markPage marks blocks of one page, the last one inclusive, and before them the page.
func (b *Bitmap) markPage(page, from, to int64) error {
	win, err := unix.Mmap(b.m.FD(), (1+page)*pageSize, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("bpf: map page %d of bitmap %d: %w", page, b.id, err)
	}
	// First of all: a program leaves it to whoever set a word's first bit to mark the page.
	if b.plain() {
		b.page[summaryOff+page/8] = 1
		for i := from; i <= to; i++ {
			win[i] = 1
		}
	} else {
		orWord(b.page[summaryOff:], page/64, 1<<(page%64))
		orBits(win, from, to)
	}
	if err := unix.Munmap(win); err != nil {
		return fmt.Errorf("bpf: unmap page %d of bitmap %d: %w", page, b.id, err)
	}
	return nil
}

// orBits sets bits of a page, the last one inclusive.
func orBits(win []byte, from, to int64) {
	for word := from / 64; word <= to/64; word++ {
		mask := ^uint64(0)
		if word == from/64 {
			mask &= ^uint64(0) << (from % 64)
		}
		if word == to/64 {
			mask &= ^uint64(0) >> (63 - to%64)
		}
		orWord(win, word, mask)
	}
}

// anyIn reports whether one of n pages from first on has marks. Both are
// multiples of 64, but for the n of the last window. Bytes stand where the bits of their
// pages would.
func (b *Bitmap) anyIn(first, n int) bool {
	return binary.LittleEndian.Uint64(b.page[summaryOff+first/8:])<<(64-n) != 0
}

// read copies n pages of the bitmap to words, a bit a block.
func (b *Bitmap) read(first, n int, words []uint64) error {
	win, err := unix.Mmap(b.m.FD(), int64(1+first)*pageSize, n*pageSize, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("bpf: map pages of bitmap %d: %w", b.id, err)
	}
	if b.plain() {
		gather(words, win)
	} else {
		for i := range n * pageSize / 8 {
			words[i] = binary.LittleEndian.Uint64(win[8*i:])
		}
	}
	if err := unix.Munmap(win); err != nil {
		return fmt.Errorf("bpf: unmap pages of bitmap %d: %w", b.id, err)
	}
	return nil
}

// gather makes a bit of each byte.
func gather(words []uint64, blocks []byte) {
	clear(words)
	for at := 0; at < len(blocks); at += 8 {
		if binary.LittleEndian.Uint64(blocks[at:]) == 0 {
			continue
		}
		for i, set := range blocks[at : at+8] {
			words[at/64] |= uint64(set&1) << (at%64 + i)
		}
	}
}
