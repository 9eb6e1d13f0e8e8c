package vault

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"
)

const (
	packMagic  = "TMPACK\r\n"
	tableMagic = "TMTABLE\n"
	packHead   = 32
	packEnd    = 64
	leastPack  = packHead + tagSize + 1 + entrySize + tagSize + packEnd
	// packFull is where a Pack asks to be ended: with a chunk more and its table it mostly stays within
	// the large pages of 16 MiB, and always below MaxPack.
	packFull = 16<<20 - 1<<19
)

// PackRoom is what most packs have room in: a multiple of the large pages of memory.
const PackRoom = 18 << 20

// Pack is one that is being written.
type Pack struct {
	name   PackName
	keys   *Keys
	opener *Opener
	b      []byte
	table  []Segment
	next   uint32
}

// NewPack begins the first generation of a pack. The id must be random, and of no other pack. It
// is written into room where that has PackRoom, and as far as it has enough; nil will do.
func (k *Keys) NewPack(id ID, room []byte) *Pack { return k.begin(PackName{ID: id}, room) }

func (k *Keys) begin(name PackName, room []byte) *Pack {
	if cap(room) < PackRoom {
		room = make([]byte, PackRoom)
	}
	b := room[:packHead]
	clear(b)
	copy(b, packMagic)
	binary.LittleEndian.PutUint32(b[8:], version)
	binary.LittleEndian.PutUint32(b[12:], name.Generation)
	copy(b[16:], name.ID[:])
	return &Pack{name: name, keys: k, opener: k.Opener(name.ID), b: b}
}

// Name returns where the pack lies.
func (p *Pack) Name() PackName { return p.name }

// Full reports whether the pack should be ended.
func (p *Pack) Full() bool { return len(p.b) >= packFull || len(p.table) >= MaxSegments }

// Empty reports whether there is no segment in it.
func (p *Pack) Empty() bool { return len(p.table) == 0 }

// Len returns how many bytes of segments the pack has.
func (p *Pack) Len() int64 { return int64(len(p.b) - packHead) }

// Add seals a segment of plain bytes (their number), which body is the coding of. Of s only Kind,
// Coding, Plain and Hash are looked at. The pack must not be full.
func (p *Pack) Add(s Segment, body []byte) Ref {
	s.Number, s.Place, s.Stored = p.next, int64(len(p.b)), int64(len(body)+tagSize)
	p.next++
	p.b = slices.Grow(p.b, len(body)+tagSize) // Seal would make room for one segment, and copy the pack each time
	p.b = p.opener.aead.Seal(p.b, s.nonce(), body, s.additional(p.name.ID))
	p.table = append(p.table, s)
	return Ref{Pack: p.name.ID, Segment: s.Number}
}

// Open returns the plain bytes of a segment that was added, in room where that is large enough; nil
// will do.
func (p *Pack) Open(c *Codec, number uint32, room []byte) ([]byte, error) {
	t := Table{Segments: p.table}
	s, ok := t.Find(number)
	if !ok {
		return nil, fmt.Errorf("vault: %v: %w: there is no such segment", Ref{p.name.ID, number}, ErrDamaged)
	}
	return p.opener.Open(c, s, p.b[s.Place:s.Place+s.Stored], room)
}

// Segments returns the table of what was added. It must not be changed.
func (p *Pack) Segments() []Segment { return p.table }

// End returns the whole pack. The salt must be random.
func (p *Pack) End(salt Salt) []byte {
	plain := EncodeSegments(p.table)
	end := make([]byte, packEnd)
	copy(end, tableMagic)
	binary.LittleEndian.PutUint32(end[8:], uint32(len(p.table)))
	copy(end[16:], salt[:])
	additional := slices.Concat(p.b[:packHead], end[:packEnd-sumSize])
	p.b = slices.Grow(p.b, len(plain)+tagSize+packEnd)
	p.b = p.keys.cipher(salt[:], "table").Seal(p.b, noNonce[:], plain, additional)
	p.b = append(p.b, end...)
	putSum(p.b)
	return p.b
}

// Table is what a pack says of its segments.
type Table struct {
	Name     PackName
	Salt     Salt
	Segments []Segment // by number
}

// Find returns the segment of that number.
func (t *Table) Find(number uint32) (Segment, bool) {
	i, ok := slices.BinarySearchFunc(t.Segments, number, func(s Segment, n uint32) int { return int(int64(s.Number) - int64(n)) })
	if !ok {
		return Segment{}, false
	}
	return t.Segments[i], true
}

// ReadTable reads the table of a pack of size bytes, which must be the one of that name. It reads
// the two ends of the pack. Whether the segments are sound shows when they are
// opened, or with CheckPack.
func (k *Keys) ReadTable(r io.ReaderAt, size int64, name PackName) (*Table, error) {
	t, err := k.readTable(r, size, name)
	if err != nil {
		return nil, fmt.Errorf("vault: %v: %w", name, err)
	}
	return t, nil
}

func (k *Keys) readTable(r io.ReaderAt, size int64, name PackName) (*Table, error) {
	f, err := readFrame(r, size)
	if err != nil {
		return nil, err
	}
	if f.name != name {
		return nil, fmt.Errorf("%w: it is %v", ErrDamaged, f.name)
	}
	sealed := make([]byte, f.tableLen())
	if err := readFull(r, sealed, f.tableAt()); err != nil {
		return nil, fmt.Errorf("table at byte %d: %w", f.tableAt(), err)
	}
	plain, err := k.cipher(f.salt[:], "table").Open(nil, noNonce[:], sealed, f.additional)
	if err != nil {
		return nil, fmt.Errorf("table at byte %d: %w: its seal does not hold", f.tableAt(), ErrDamaged)
	}
	t := &Table{Name: name, Salt: f.salt}
	if t.Segments, err = DecodeSegments(plain); err != nil {
		return nil, fmt.Errorf("table at byte %d: %w", f.tableAt(), err)
	}
	if last := t.Segments[len(t.Segments)-1]; last.Place+last.Stored != f.tableAt() {
		return nil, fmt.Errorf("table at byte %d: %w: the segments end at byte %d", f.tableAt(), ErrDamaged, last.Place+last.Stored)
	}
	return t, nil
}

// EncodeSegments returns the entries of a table.
func EncodeSegments(all []Segment) (b []byte) {
	for i := range all {
		b = all[i].encode(b)
	}
	return b
}

// DecodeSegments reads the entries of a table.
func DecodeSegments(b []byte) ([]Segment, error) {
	if len(b)%entrySize != 0 {
		return nil, fmt.Errorf("%w: %d bytes are no table", ErrDamaged, len(b))
	}
	all := make([]Segment, 0, len(b)/entrySize)
	place := int64(packHead)
	for i := 0; i < len(b); i += entrySize {
		s, err := decodeSegment(b[i:], place)
		if err == nil && len(all) > 0 && s.Number <= all[len(all)-1].Number {
			err = fmt.Errorf("%w: segment %d comes too late", ErrDamaged, s.Number)
		}
		if err != nil {
			return nil, fmt.Errorf("entry at %d: %w", i, err)
		}
		all = append(all, s)
		place += s.Stored
	}
	return all, nil
}

// frame is what a pack shows without a key.
type frame struct {
	name       PackName
	size       int64
	segments   int64
	salt       Salt
	additional []byte
}

func (f *frame) tableLen() int64 { return f.segments*entrySize + tagSize }
func (f *frame) tableAt() int64  { return f.size - packEnd - f.tableLen() }

// readFrame reads the first and last bytes of a pack.
func readFrame(r io.ReaderAt, size int64) (*frame, error) {
	b := make([]byte, packHead+packEnd)
	if size > MaxPack {
		return nil, fmt.Errorf("%w: %d bytes, and a pack has at most %d", ErrDamaged, size, MaxPack)
	}
	if err := readFull(r, b[:min(packHead, max(size, 0))], 0); err != nil {
		return nil, fmt.Errorf("head at byte 0: %w", err)
	}
	le := binary.LittleEndian
	switch v := le.Uint32(b[8:]); {
	case string(b[:8]) != packMagic:
		return nil, fmt.Errorf("head at byte 0: %w: it begins with %q, want %q", ErrNotVault, b[:8], packMagic)
	case v > version:
		return nil, fmt.Errorf("head at byte 0: %w: version %d, known is %d", ErrNewer, v, version)
	case v < version || size < leastPack:
		return nil, fmt.Errorf("head at byte 0: %w: version %d, %d bytes", ErrDamaged, v, size)
	}
	end := b[packHead:]
	if err := readFull(r, end, size-packEnd); err != nil {
		return nil, fmt.Errorf("end at byte %d: %w", size-packEnd, err)
	}
	f := &frame{
		name: PackName{ID: ID(b[16:]), Generation: le.Uint32(b[12:])}, size: size,
		segments: int64(le.Uint32(end[8:])), salt: Salt(end[16:]), additional: b[:packHead+packEnd-sumSize],
	}
	if string(end[:8]) != tableMagic || le.Uint32(end[12:]) != 0 || f.name.ID.IsZero() ||
		f.segments < 1 || f.segments > MaxSegments || f.tableAt() < packHead+(tagSize+1)*f.segments {
		return nil, fmt.Errorf("end at byte %d: %w: %q, %d segments", size-packEnd, ErrDamaged, end[:8], f.segments)
	}
	return f, nil
}

// CheckPack holds the whole of a pack against its checksum, without a key.
func CheckPack(b []byte) (PackName, error) {
	f, err := readFrame(sized(b), int64(len(b)))
	if err == nil {
		err = checkSum(b)
	}
	if err != nil {
		return PackName{}, fmt.Errorf("vault: pack: %w", err)
	}
	return f.name, nil
}

// NextGeneration begins another generation of a pack, which Keep fills.
func (k *Keys) NextGeneration(name PackName) *Pack { return k.begin(name, nil) }

// Keep takes over a segment of an earlier generation, of which the table says s, in the order of their
// numbers. The stored bytes are not looked at: an Opener does that.
func (p *Pack) Keep(s Segment, stored []byte) {
	s.Place = int64(len(p.b))
	p.b = append(p.b, stored...)
	p.table = append(p.table, s)
}

// GenerationSize returns how many bytes a pack of these segments has.
func GenerationSize(all []Segment) int64 {
	size := int64(packHead + tagSize + packEnd)
	for _, s := range all {
		size += s.Stored + entrySize
	}
	return size
}

// sized is bytes as an io.ReaderAt.
type sized []byte

func (b sized) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= int64(len(b)) {
		return 0, io.EOF
	}
	n := copy(p, b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		return fmt.Errorf("%w: cut off after %d bytes", ErrDamaged, off+int64(n))
	}
	return err
}
