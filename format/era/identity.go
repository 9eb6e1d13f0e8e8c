package era

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"

	"tidemark/format/pdata"
)

// identityMagic starts the identity in a superblock. The kernel reads and writes
// the first 224 bytes only: what follows is kept at every commit, is under the
// checksum, and is copied into a metadata snapshot.
const identityMagic = "tidemark"

// Where the identity is in the superblock, in bytes.
const (
	identityAt = 256
	identityID = identityAt + len(identityMagic)
)

// Identity is a random number that tells the metadata of one device from all other
// metadata, also from older metadata in the same place. The zero value means that
// metadata has no identity: the kernel and thin-provisioning-tools write none.
// Neither do Restore and Repair: their output is not the history that the old
// identity stood for.
type Identity [16]byte

// String returns the identity in hexadecimal; it is empty when there is none.
func (i Identity) String() string {
	if i == (Identity{}) {
		return ""
	}
	return hex.EncodeToString(i[:])
}

// MarshalText returns what String does.
func (i Identity) MarshalText() ([]byte, error) { return []byte(i.String()), nil }

// UnmarshalText is the opposite of MarshalText.
func (i *Identity) UnmarshalText(text []byte) error {
	var n Identity
	if len(text) == 0 {
		*i = n
		return nil
	}
	if len(text) != hex.EncodedLen(len(n)) {
		return fmt.Errorf("era: identity of %d digits, want %d", len(text), hex.EncodedLen(len(n)))
	}
	if _, err := hex.Decode(n[:], text); err != nil {
		return fmt.Errorf("era: identity: %w", err)
	}
	*i = n
	return nil
}

// identityIn returns the identity in a superblock.
func identityIn(b []byte) (i Identity) {
	if bytes.HasPrefix(b[identityAt:], []byte(identityMagic)) {
		copy(i[:], b[identityID:])
	}
	return i
}

func (i Identity) put(b []byte) {
	if i == (Identity{}) {
		return
	}
	copy(b[identityAt:], identityMagic)
	copy(b[identityID:], i[:])
}

// Identify makes End write an identity into the superblock.
func (b *Builder) Identify(id Identity) { b.identity = id }

// Stamp gives the metadata in the first size bytes of rw an identity, in place of
// the one it has. Only the superblock is written, in one write, and synced when rw
// has a Sync method. A power cut leaves the old superblock or the new, on a device
// that writes 4096 bytes as a whole; the kernel relies on the same at every commit.
//
// The kernel must not be using the metadata: it would overwrite the identity.
func Stamp(rw interface {
	io.ReaderAt
	io.WriterAt
}, size int64, id Identity,
) error {
	if _, err := Open(rw, size); err != nil {
		return err
	}
	b := pdata.Buffer(1)
	if _, err := rw.ReadAt(b, 0); err != nil {
		return ours.Unreadable(0, pdata.EraSuper.String(), err)
	}
	if _, err := parseSuper(0, b); err != nil {
		return err
	}
	clear(b[identityAt : identityID+len(id)])
	id.put(b)
	pdata.Seal(pdata.EraSuper, 0, b)
	if _, err := rw.WriteAt(b, 0); err != nil {
		return fmt.Errorf("era: identity at byte %d: %w", identityAt, err)
	}
	if s, ok := rw.(interface{ Sync() error }); ok {
		return s.Sync()
	}
	return nil
}
