package vault

import (
	"encoding/binary"
	"fmt"
	"math"
)

const (
	// LeafSize is how many bytes of a disk a leaf page covers.
	LeafSize = 16 << 20
	// Fanout is how many pages of the level below an inner page covers.
	Fanout = 1024
	// MaxEntries bounds the entries of a leaf page.
	MaxEntries = 8192
	// MaxLevel is that of a page that covers all that an int64 counts.
	MaxLevel = 4

	leafBits, fanBits = 24, 10
	maxPacks          = 1 << 16
)

// Level returns the level of the root of a map of size bytes.
func Level(size int64) int {
	level := 0
	for level < MaxLevel && size > Covers(level) {
		level++
	}
	return level
}

// Covers returns how many bytes a page of that level covers; that of the highest is more than
// an int64 counts, and is cut off there.
func Covers(level int) int64 {
	if level >= MaxLevel {
		return math.MaxInt64
	}
	return 1 << (leafBits + fanBits*level)
}

// Entry says where bytes of a disk lie.
type Entry struct {
	Off, Len int64 // bytes, from the start of the page
	Ref      Ref
	At       int64 // in the plain bytes of the segment
}

// Leaf is a leaf page: entries in the order of the disk. Between them there are zeros.
type Leaf []Entry

// Inner is an inner page; where a Ref is zero there are only zeros.
type Inner [Fanout]Ref

// Encode returns the bytes of the page, which has at least one entry and at most MaxEntries. It
// fails for entries that no page can have.
func (l Leaf) Encode() ([]byte, error) {
	w := newPageWriter(0)
	end := int64(0)
	for i, e := range l {
		if e.Off < end || e.Len < 1 || e.Off > LeafSize-e.Len || !e.Ref.valid() || e.At < 0 || e.At > MaxSegment-e.Len {
			return nil, fmt.Errorf("vault: leaf page: entry %d, %+v behind %d: %w", i, e, end, ErrDamaged)
		}
		w.uvarint(uint64(e.Off - end))
		w.uvarint(uint64(e.Len))
		w.ref(e.Ref)
		w.uvarint(uint64(e.At))
		end = e.Off + e.Len
	}
	if len(l) < 1 || len(l) > MaxEntries {
		return nil, fmt.Errorf("vault: leaf page: %d entries: %w", len(l), ErrDamaged)
	}
	return w.page(len(l)), nil
}

// Encode returns the bytes of the page of that level, which is at least 1. It fails for a page
// without any below.
func (p *Inner) Encode(level int) ([]byte, error) {
	w := newPageWriter(byte(level))
	next, n := 0, 0
	for i, ref := range p {
		if ref.IsZero() {
			continue
		}
		if !ref.valid() {
			return nil, fmt.Errorf("vault: inner page of level %d: %v: %w", level, ref, ErrDamaged)
		}
		w.uvarint(uint64(i - next))
		w.ref(ref)
		next, n = i+1, n+1
	}
	if n == 0 || level < 1 || level > MaxLevel {
		return nil, fmt.Errorf("vault: inner page of level %d: %d pages: %w", level, n, ErrDamaged)
	}
	return w.page(n), nil
}

// DecodeLeaf reads a leaf page.
func DecodeLeaf(b []byte) (Leaf, error) {
	r := pageReader{b: b}
	n := r.head(0, MaxEntries)
	l := make(Leaf, 0, n)
	end := uint64(0)
	for range n {
		gap, length := r.uvarint(LeafSize), r.uvarint(LeafSize)
		e := Entry{Off: int64(end + gap), Len: int64(length), Ref: r.ref(), At: int64(r.uvarint(MaxSegment))}
		if e.Len < 1 || e.Off > LeafSize-e.Len || e.At > MaxSegment-e.Len {
			r.fail("an entry of %d bytes at %d, from %d on", e.Len, e.Off, e.At)
		}
		if r.err != nil {
			break
		}
		l, end = append(l, e), uint64(e.Off+e.Len)
	}
	if err := r.end(); err != nil {
		return nil, fmt.Errorf("vault: leaf page: %w", err)
	}
	return l, nil
}

// DecodeInner reads an inner page of that level.
func DecodeInner(b []byte, level int) (*Inner, error) {
	r := pageReader{b: b}
	n := r.head(byte(level), Fanout)
	var p Inner
	next := uint64(0)
	for range n {
		at := next + r.uvarint(Fanout)
		ref := r.ref()
		if at >= Fanout {
			r.fail("page %d of %d", at, Fanout)
		}
		if r.err != nil {
			break
		}
		p[at], next = ref, at+1
	}
	if err := r.end(); err != nil {
		return nil, fmt.Errorf("vault: inner page of level %d: %w", level, err)
	}
	return &p, nil
}

// pageWriter collects the entries of a page, and the packs that they name.
type pageWriter struct {
	level   byte
	entries []byte
	packs   []ID
	index   map[ID]uint64
	segment uint32 // of the entry before
}

func newPageWriter(level byte) *pageWriter {
	return &pageWriter{level: level, index: map[ID]uint64{}}
}

func (w *pageWriter) uvarint(v uint64) { w.entries = binary.AppendUvarint(w.entries, v) }

func (w *pageWriter) ref(r Ref) {
	i, ok := w.index[r.Pack]
	if !ok {
		i = uint64(len(w.packs))
		w.index[r.Pack] = i
		w.packs = append(w.packs, r.Pack)
	}
	w.uvarint(i)
	w.entries = binary.AppendVarint(w.entries, int64(r.Segment)-int64(w.segment))
	w.segment = r.Segment
}

func (w *pageWriter) page(entries int) []byte {
	b := binary.AppendUvarint([]byte{w.level}, uint64(len(w.packs)))
	for _, id := range w.packs {
		b = append(b, id[:]...)
	}
	return append(binary.AppendUvarint(b, uint64(entries)), w.entries...)
}

// pageReader reads a page. After the first fault it reads zeros.
type pageReader struct {
	b       []byte
	at      int
	packs   []ID
	used    uint64 // of packs
	segment int64
	err     error
}

func (r *pageReader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("at byte %d: %w: "+format, append([]any{r.at, ErrDamaged}, args...)...)
	}
}

// head reads all before the entries, and returns how many there are.
func (r *pageReader) head(level byte, limit uint64) uint64 {
	if len(r.b) == 0 || len(r.b) > MaxSegment || r.b[0] != level {
		r.fail("no page of level %d", level)
		return 0
	}
	r.at = 1
	packs := r.uvarint(min(maxPacks, uint64(len(r.b))/16))
	if need := packs * 16; need > uint64(len(r.b)-r.at) {
		r.fail("%d packs", packs)
		return 0
	}
	seen := make(map[ID]bool, packs)
	for range packs {
		id := ID(r.b[r.at:])
		if id.IsZero() || seen[id] {
			r.fail("pack %v twice, or none", id)
			return 0
		}
		seen[id] = true
		r.packs, r.at = append(r.packs, id), r.at+16
	}
	n := r.uvarint(min(limit, uint64(len(r.b))))
	if n == 0 {
		r.fail("no entries")
	}
	return n
}

func (r *pageReader) uvarint(limit uint64) uint64 {
	if r.err != nil {
		return 0
	}
	v, n := binary.Uvarint(r.b[r.at:])
	if n <= 0 || n > 1 && r.b[r.at+n-1] == 0 || v > limit {
		r.fail("no number up to %d", limit)
		return 0
	}
	r.at += n
	return v
}

func (r *pageReader) ref() Ref {
	i := r.uvarint(maxPacks)
	z := r.uvarint(2*MaxSegments - 1)
	delta := int64(z >> 1)
	if z&1 != 0 {
		delta = ^delta
	}
	r.segment += delta
	if i > r.used || i >= uint64(len(r.packs)) || r.segment < 0 || r.segment >= MaxSegments {
		r.fail("segment %d of pack %d", r.segment, i)
		return Ref{}
	}
	r.used = max(r.used, i+1)
	return Ref{Pack: r.packs[i], Segment: uint32(r.segment)}
}

// end checks that nothing is left over.
func (r *pageReader) end() error {
	if r.err == nil && (r.at != len(r.b) || r.used != uint64(len(r.packs))) {
		r.fail("bytes or packs are left over")
	}
	return r.err
}
