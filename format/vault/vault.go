// Package vault is the format of a vault: many points of many disks, each a full one, whose
// bytes are stored once, compressed and sealed.
//
// For most uses, package tidemark/vault is the way: it opens a vault in a store and knows
// what to write when. This package makes and reads the objects of a vault, one by one, from
// bytes or an io.ReaderAt. It opens no file and knows no clock and no store. It refuses what is
// not of a vault (ErrNotVault), what is damaged, cut, altered or belongs elsewhere (ErrDamaged)
// and what a later tidemark wrote (ErrNewer), and never allocates by a number that it
// has not checked. What parses is encoded again to the same bytes, but for compression. Keys and
// a Codec may be used by several goroutines at once, a Pack by one.
//
// # A vault
//
// A vault is a set of objects with names, each written once and never changed:
//
//	vault                what the vault is
//	keys/ID              the master key, for somebody who may open the vault
//	disks/DISK           sealed: what a disk is called
//	points/DISK/TIME-ID  sealed: one point of a disk
//	packs/XX/PACK.GEN    stored bytes, and a table of them; XX is the start of PACK
//	dead/PACK.GEN        sealed, empty: the pack is not needed
//	leases/ID            sealed: somebody is at work
//	lost/DISK/TIME-ID    sealed, empty: repair found that this point cannot be read whole
//	aside/NAME           what repair took from NAME, as it was: nobody reads it
//
// PACK and ID are 16 random bytes as 32 hex digits, DISK follows from the name of the disk (see Keys), GEN is a number without leading
// zeros, and TIME is as 20261127T100000Z, in UTC. Hex digits are of lower case. All
// integers are little endian. Sizes and places are bytes. A checksum is BLAKE3-256, and
// covers what is stored, so that it is checked without a key. Magic and version have their
// places in every version, and so has the checksum at the end of an object.
//
// # Object vault
//
//	off  size
//	  0     8  magic "TMVAULT\n"
//	  8     4  version, 1
//	 12     4  flags; 1: not encrypted; 2: its objects are locked
//	 16    16  id of the vault, random
//	 32     4  size of a chunk, 65536
//	 36     4  of one with flag 2: seconds, at least 1; zeros otherwise
//	 40    32  the master key when the vault is not encrypted, zeros otherwise
//	 72    32  checksum of bytes 0 to 71
//
// A vault that is not encrypted is one whose master key lies in the open: everything else is
// as in any other, and all checks are kept.
//
// Where objects are locked, the store lets nobody remove or replace an object that a point needs before
// that time has passed since the point was made. It is the store that knows until when, not
// the objects. What a point needs is the objects vault, keys/ID and disks/DISK, its manifest, and the
// newest generations of its packs. All other objects are not locked.
//
// # Object keys/ID
//
// An age file (age-encryption.org/v1, binary) to a passphrase or to recipients, so that
// age -d shows what it holds:
//
//	off  size
//	  0     8  magic "TMKEY\r\n\n"
//	  8     4  version, 1
//	 12     4  zeros
//	 16    32  the master key
//	 48    32  BLAKE3-256 of the object vault
//
// The last field is why nobody can swap the object vault of an encrypted one.
//
// # Keys
//
// From the 32 bytes of the master key others are derived with HKDF-SHA-256 (RFC 5869), each of
// 32 bytes:
//
//	salt          info                               what for
//	none          "tidemark vault 1 chunk hash"      keyed BLAKE3, the hash of a chunk
//	id of a pack  "tidemark vault 1 segments"        AES-256-GCM, segments of that pack
//	in the object "tidemark vault 1 table"           AES-256-GCM, the table of one generation
//	in the object "tidemark vault 1 object " + name  AES-256-GCM, one sealed object
//	its name      "tidemark vault 1 disk"            the first 16 bytes are the id of a disk
//
// So two that make the disk of a name at once make the same object, and one of them is refused. Who
// reads a vault takes any id: it tells nothing.
//
// The nonce of a segment is its number in 4 bytes, and 8 zeros. All other nonces are zeros,
// since their key seals once: its salt is random. So no nonce can repeat however large a
// vault grows, also when two processes write a generation of one pack.
//
// # Sealed objects: disks, points, leases, dead, lost
//
//	off  size
//	  0     8  magic "TMSEALED"
//	  8     4  version, 1
//	 12     4  N, the length of what is sealed, 16 to 1 MiB
//	 16    16  salt, random
//	 32     N  AES-256-GCM of the content, with the tag of 16 bytes; additional data is bytes 0 to 31
//	 32+N  32  checksum of what is before it
//
// The name is in the key, so that no object stands in for another. The content of disks,
// points and leases is JSON: the fields of Disk, Point and Lease in their order, without
// white space, as Go's encoding/json writes them; hooks is left out where it is empty. Another field is refused as damage: a version that
// has one has another number. That of dead and lost is empty, and nobody needs its seal: who can write an
// object there can remove the pack, or the point, as well.
//
// # Packs
//
//	off      size
//	  0         8  magic "TMPACK\r\n"
//	  8         4  version, 1
//	 12         4  generation
//	 16        16  id of the pack, not zeros
//	 32            segments, one behind the other, in the order of the table
//	end-64-T    T  the table, sealed: T = 48 × segments + 16; additional data is bytes 0 to
//	               31 of the pack and end-64 to end-33
//	end-64      8  magic "TMTABLE\n"
//	end-56      4  segments in the table, 1 to 262144
//	end-52      4  zeros
//	end-48     16  salt of the table
//	end-32     32  checksum of all that is before it
//
// A pack has at most 64 MiB. What is in no segment was left out when a new generation was
// written: segments keep their number and their bytes, so that what refers to them need not
// change. Where several generations are there the newest counts; a segment that it does not have is
// taken from an older one that does. An entry of the table:
//
//	off  size
//	  0     4  number of the segment, above that of the entry before, below 262144
//	  4     1  kind: 1 chunk, 2 run, 3 page
//	  5     1  coding: 0 as it is, 1 Zstandard (RFC 8878)
//	  6     2  zeros
//	  8     4  stored length, with the tag of 16 bytes
//	 12     4  plain length, 1 to 1 MiB
//	 16    32  of a chunk its hash, otherwise zeros
//
// A segment is stored with AES-256-GCM; additional data is the id of the pack, then bytes 0
// to 7 and 12 to 15 of its entry. A chunk is 65536 bytes that lie at a multiple of that on a
// disk; one at the end of a disk is shorter. A run is other bytes of a disk, from
// one place or several. A page is of a map.
//
// # Maps
//
// A map is a tree that says where the bytes of a disk lie. A leaf page covers 16 MiB, an inner
// page 1024 pages of the level below: 16 GiB, 16 TiB, 16 PiB, and so on. The root is a page of
// the lowest level that covers the disk. Where there is no page and no entry there are zeros.
//
//	1 byte     level: 0 is a leaf
//	varint     number of packs, 1 to 65536
//	16 × that  their ids, in the order of their first use
//	varint     number of entries, 1 to 8192 in a leaf, 1 to 1024 in an inner page
//	entries
//
// An entry of a leaf is five varints, in their shortest form (as encoding/binary's Uvarint):
//
//	bytes of zeros behind the entry before, or from the start of the page
//	length, at least 1
//	index of the pack
//	number of the segment, less that of the entry before, as a zigzag (as encoding/binary's Varint)
//	place in the plain bytes of the segment
//
// An entry of an inner page is three: pages that are not there behind the entry before; index
// of the pack; number of the segment, as above.
package vault

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/zeebo/blake3"
)

// MaxSegments is how many segments a pack has at most; their numbers are below it.
const MaxSegments = 1 << 18

// Sizes, in bytes.
const (
	ChunkSize  = 64 << 10 // of a chunk
	MaxSegment = 1 << 20  // of the plain bytes of a segment, at most
	MaxPack    = 64 << 20 // of a pack, at most
	MaxSealed  = 1<<20 + sealedHead + sumSize
)

const (
	version     = 1
	sumSize     = 32
	tagSize     = 16 // of AES-GCM
	headerMagic = "TMVAULT\n"
	headerSize  = 104
	flagOpen    = 1
	flagLocked  = 2
)

// MaxLock is the longest lock of a vault.
const MaxLock = math.MaxUint32 * time.Second

var (
	// ErrNotVault says that the bytes are not of a vault.
	ErrNotVault = errors.New("not of a vault")
	// ErrDamaged says that the bytes were altered or cut, or lie where they do not belong.
	ErrDamaged = errors.New("the vault is damaged")
	// ErrNewer says that a later tidemark wrote the bytes.
	ErrNewer = errors.New("a newer tidemark wrote the vault")
	// ErrKey says that none of the keys that were given opens a key file.
	ErrKey = errors.New("this key does not open the vault")
)

// ID is the id of a vault, a disk, a point or a pack: 16 random bytes.
type ID [16]byte

func (id ID) String() string { return fmt.Sprintf("%x", id[:]) }

// IsZero reports whether it is the id of nothing.
func (id ID) IsZero() bool { return id == ID{} }

// Header is the object vault.
type Header struct {
	ID ID
	// Open is the master key of a vault that is not encrypted; nil in one that is.
	Open *Master
	// Lock is for how long nobody can remove what a point needs, whole seconds up to MaxLock; 0: it
	// is not locked.
	Lock time.Duration
}

// Encode returns the bytes of the object.
func (h Header) Encode() []byte {
	b := make([]byte, headerSize)
	copy(b, headerMagic)
	binary.LittleEndian.PutUint32(b[8:], version)
	copy(b[16:], h.ID[:])
	binary.LittleEndian.PutUint32(b[32:], ChunkSize)
	flags := uint32(0)
	if h.Open != nil {
		flags |= flagOpen
		copy(b[40:], h.Open[:])
	}
	if h.Lock != 0 {
		flags |= flagLocked
		binary.LittleEndian.PutUint32(b[36:], uint32(h.Lock/time.Second))
	}
	binary.LittleEndian.PutUint32(b[12:], flags)
	putSum(b)
	return b
}

// ParseHeader reads the object vault.
func ParseHeader(b []byte) (Header, error) {
	h, err := parseHeader(b)
	if err != nil {
		return Header{}, fmt.Errorf("vault: object vault: %w", err)
	}
	return h, nil
}

func parseHeader(b []byte) (h Header, err error) {
	if err := envelope(b, headerMagic, headerSize); err != nil {
		return h, err
	}
	le := binary.LittleEndian
	flags, lock := le.Uint32(b[12:]), le.Uint32(b[36:])
	switch {
	case len(b) != headerSize:
		return h, fmt.Errorf("%w: %d bytes, want %d", ErrDamaged, len(b), headerSize)
	case flags&^(flagOpen|flagLocked) != 0:
		return h, fmt.Errorf("%w: flags %#x, known are %#x", ErrNewer, flags, flagOpen|flagLocked)
	case le.Uint32(b[32:]) != ChunkSize:
		return h, fmt.Errorf("%w: chunks of %d bytes", ErrNewer, le.Uint32(b[32:]))
	case (flags&flagLocked != 0) != (lock != 0):
		return h, fmt.Errorf("%w: flags %#x, and a lock of %d s", ErrDamaged, flags, lock)
	}
	h.ID, h.Lock = ID(b[16:]), time.Duration(lock)*time.Second
	key := Master(b[40:])
	switch {
	case h.ID.IsZero():
		return h, fmt.Errorf("%w: it has no id", ErrDamaged)
	case flags&flagOpen == 0 && key != Master{}:
		return h, fmt.Errorf("%w: it is encrypted, and its key lies in the open", ErrDamaged)
	case flags&flagOpen != 0:
		h.Open = &key
	}
	return h, nil
}

// envelope checks what all objects have in common: length, magic, version, and checksum.
func envelope(b []byte, magic string, least int) error {
	switch {
	case len(b) < len(magic) || string(b[:len(magic)]) != magic:
		return fmt.Errorf("%w: it begins with %q, want %q", ErrNotVault, b[:min(len(b), len(magic))], magic)
	case len(b) < 12+sumSize:
		return fmt.Errorf("%w: cut off after %d bytes", ErrDamaged, len(b))
	}
	if err := checkSum(b); err != nil {
		return err
	}
	switch v := binary.LittleEndian.Uint32(b[8:]); {
	case v > version:
		return fmt.Errorf("%w: version %d, known is %d", ErrNewer, v, version)
	case v < version:
		return fmt.Errorf("%w: version %d", ErrDamaged, v)
	case len(b) < least:
		return fmt.Errorf("%w: cut off after %d bytes", ErrDamaged, len(b))
	}
	return nil
}

// checkSum holds bytes against the checksum at their end.
func checkSum(b []byte) error {
	body, want := b[:len(b)-sumSize], b[len(b)-sumSize:]
	if got := blake3.Sum256(body); string(got[:]) != string(want) {
		return fmt.Errorf("%w: checksum %x, want %x", ErrDamaged, want[:8], got[:8])
	}
	return nil
}

// putSum writes the checksum at the end of b.
func putSum(b []byte) {
	sum := blake3.Sum256(b[:len(b)-sumSize])
	copy(b[len(b)-sumSize:], sum[:])
}
