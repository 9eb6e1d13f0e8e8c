package vault

import (
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// Kind is what a segment holds.
type Kind uint8

// The kinds of segments.
const (
	Chunk Kind = 1 // ChunkSize bytes that lie at a multiple of that, or fewer at the end of a disk
	Run   Kind = 2 // other bytes of a disk
	Page  Kind = 3 // a page of a map
)

func (k Kind) String() string {
	switch k {
	case Chunk:
		return "chunk"
	case Run:
		return "run"
	case Page:
		return "page"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Coding is how the bytes of a segment are written before they are sealed.
type Coding uint8

// The codings.
const (
	Plain Coding = 0
	Zstd  Coding = 1
)

const (
	entrySize = 48
	// leastGain is what part of the bytes a compression must save to be kept.
	leastGain = 16
)

// Ref names a segment. The zero value names none.
type Ref struct {
	Pack    ID     `json:"pack"`
	Segment uint32 `json:"segment"`
}

// IsZero reports whether it names no segment.
func (r Ref) IsZero() bool { return r.Pack.IsZero() }

func (r Ref) valid() bool { return !r.IsZero() && r.Segment < MaxSegments }

func (r Ref) String() string { return fmt.Sprintf("segment %d of pack %s", r.Segment, r.Pack) }

// Segment is what a table says of one.
type Segment struct {
	Number uint32
	Kind   Kind
	Coding Coding
	Place  int64 // in the pack, bytes
	Stored int64 // bytes in the pack, the tag included
	Plain  int64 // bytes
	Hash   Hash  // of a chunk, otherwise zero
}

func (s *Segment) encode(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, s.Number)
	b = append(b, byte(s.Kind), byte(s.Coding), 0, 0)
	b = le.AppendUint32(b, uint32(s.Stored))
	b = le.AppendUint32(b, uint32(s.Plain))
	return append(b, s.Hash[:]...)
}

// decodeSegment reads an entry of a table, whose place follows from those before it.
func decodeSegment(b []byte, place int64) (s Segment, err error) {
	le := binary.LittleEndian
	s = Segment{
		Number: le.Uint32(b), Kind: Kind(b[4]), Coding: Coding(b[5]), Place: place,
		Stored: int64(le.Uint32(b[8:])), Plain: int64(le.Uint32(b[12:])), Hash: Hash(b[16:]),
	}
	switch {
	case s.Kind < Chunk || s.Kind > Page || s.Coding > Zstd || b[6] != 0 || b[7] != 0:
		return s, fmt.Errorf("%w: segment %d of %v in coding %d", ErrNewer, s.Number, s.Kind, s.Coding)
	case s.Number >= MaxSegments:
		return s, fmt.Errorf("%w: segment %d", ErrDamaged, s.Number)
	case s.Plain < 1 || s.Plain > MaxSegment || s.Kind == Chunk && s.Plain > ChunkSize:
		return s, fmt.Errorf("%w: segment %d: a %v of %d bytes", ErrDamaged, s.Number, s.Kind, s.Plain)
	case s.Stored <= tagSize || s.Stored-tagSize > s.Plain || s.Coding == Plain && s.Stored-tagSize != s.Plain:
		return s, fmt.Errorf("%w: segment %d: %d bytes stored as %d", ErrDamaged, s.Number, s.Plain, s.Stored)
	case (s.Kind == Chunk) == (s.Hash == Hash{}):
		return s, fmt.Errorf("%w: segment %d: a %v with the hash %x", ErrDamaged, s.Number, s.Kind, s.Hash[:8])
	}
	return s, nil
}

// additional is what a seal vouches for beside the bytes.
func (s *Segment) additional(pack ID) []byte {
	b := append(make([]byte, 0, 28), pack[:]...)
	b = binary.LittleEndian.AppendUint32(b, s.Number)
	b = append(b, byte(s.Kind), byte(s.Coding), 0, 0)
	return binary.LittleEndian.AppendUint32(b, uint32(s.Plain))
}

func (s *Segment) nonce() []byte {
	return binary.LittleEndian.AppendUint32(make([]byte, 0, 12), s.Number)[:12]
}

// Opener opens the segments of one pack.
type Opener struct {
	pack ID
	aead cipher.AEAD
}

// Opener returns what opens the segments of that pack.
func (k *Keys) Opener(pack ID) *Opener {
	return &Opener{pack: pack, aead: k.cipher(pack[:], "segments")}
}

// Open returns the plain bytes of a segment, of which the table says s, from its stored bytes.
// These are not changed. The result lies in room where that has enough of it; nil will do. Behind the
// result, and after an error, room may hold anything.
func (o *Opener) Open(c *Codec, s Segment, stored, room []byte) ([]byte, error) {
	plain, err := o.open(c, s, stored, room)
	if err != nil {
		return nil, fmt.Errorf("vault: %v at byte %d: %w", Ref{o.pack, s.Number}, s.Place, err)
	}
	return plain, nil
}

func (o *Opener) open(c *Codec, s Segment, stored, room []byte) ([]byte, error) {
	if int64(len(stored)) != s.Stored {
		return nil, fmt.Errorf("%w: %d bytes, want %d", ErrDamaged, len(stored), s.Stored)
	}
	if int64(cap(room)) < s.Plain {
		room = make([]byte, s.Plain+slack)
	}
	into := room[:0:s.Plain]
	if s.Coding != Plain {
		sealed := c.take(len(stored))
		defer c.scratch.Put(sealed)
		into = *sealed
	}
	b, err := o.aead.Open(into, s.nonce(), stored, s.additional(o.pack))
	if err != nil {
		return nil, fmt.Errorf("%w: its seal does not hold", ErrDamaged)
	}
	if s.Coding == Plain {
		return b, nil
	}
	return c.expand(b, s.Plain, room)
}

// slack is how many bytes Zstandard may write behind what it expands: with room for them it copies in
// whole words, and takes a quarter of the time less.
const slack = 16

// expand expands n bytes into room, by way of another where that has just these.
func (c *Codec) expand(b []byte, n int64, room []byte) ([]byte, error) {
	into := room
	if int64(cap(room)) < n+slack {
		roomy := c.take(int(n + slack))
		defer c.scratch.Put(roomy)
		into = *roomy
	}
	b, err := c.dec.DecodeAll(b, into[:0:n+slack])
	if err != nil || int64(len(b)) != n {
		return nil, fmt.Errorf("%w: it expands to %d bytes, want %d: %v", ErrDamaged, len(b), n, err)
	}
	if int64(cap(room)) < n+slack {
		return append(room[:0], b...), nil
	}
	return b, nil
}

// Codec compresses and expands. It may be used by several goroutines at once.
type Codec struct {
	enc     *zstd.Encoder
	dec     *zstd.Decoder
	scratch sync.Pool // of *[]byte
}

// NewCodec makes a Codec; Close frees what it holds. It works for as many goroutines at once as
// there are processors: each has tables that fill the processor's cache.
func NewCodec() (*Codec, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false),
		zstd.WithWindowSize(MaxSegment), zstd.WithEncoderConcurrency(runtime.NumCPU()))
	if err != nil {
		return nil, fmt.Errorf("vault: zstd: %w", err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(runtime.NumCPU()), zstd.WithDecodeAllCapLimit(true),
		zstd.WithDecoderMaxMemory(MaxSegment), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, fmt.Errorf("vault: zstd: %w", err)
	}
	return &Codec{enc: enc, dec: dec, scratch: sync.Pool{New: func() any { return new([]byte) }}}, nil
}

// take returns room for n bytes, which is put back into scratch.
func (c *Codec) take(n int) *[]byte {
	b := c.scratch.Get().(*[]byte)
	*b = slices.Grow((*b)[:0], n)
	return b
}

// Close frees what the codec holds.
func (c *Codec) Close() error {
	c.dec.Close()
	return c.enc.Close()
}

// Squeeze returns the bytes compressed, or as they are where that saves little. The result may
// lie in scratch, or be plain.
func (c *Codec) Squeeze(plain, scratch []byte) (Coding, []byte) {
	if b := c.enc.EncodeAll(plain, scratch[:0]); len(b) <= len(plain)-len(plain)/leastGain-1 {
		return Zstd, b
	}
	return Plain, plain
}
