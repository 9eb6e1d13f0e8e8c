package vault

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"filippo.io/age"
	"github.com/zeebo/blake3"
)

const (
	keyMagic = "TMKEY\r\n\n"
	keySize  = 80
	// maxKeyFile bounds a key file in bytes: thousands of recipients.
	maxKeyFile = 1 << 20
)

// Master is the key of a vault, from which all others are derived.
type Master [32]byte

// Hash is the keyed hash of a chunk: who has not the key cannot tell from it what is stored.
type Hash [32]byte

// Keys are what a master key opens.
type Keys struct {
	master Master
	chunks sync.Pool // of *blake3.Hasher with the key of chunks: each has 11 KiB
}

// NewKeys derives the keys that do not depend on an object.
func NewKeys(m Master) *Keys {
	k := &Keys{master: m}
	key := k.derive(nil, "chunk hash")
	k.chunks.New = func() any {
		hasher, err := blake3.NewKeyed(key)
		if err != nil {
			panic("vault: keyed BLAKE3: " + err.Error()) // of a key that has not 32 bytes
		}
		return hasher
	}
	return k
}

// Hash returns the hash of a chunk.
func (k *Keys) Hash(chunk []byte) (sum Hash) {
	h := k.chunks.Get().(*blake3.Hasher)
	defer k.chunks.Put(h)
	h.Reset()
	h.Write(chunk)
	h.Sum(sum[:0])
	return sum
}

// DiskID returns the id of the disk of that name.
func (k *Keys) DiskID(name string) ID { return ID(k.derive([]byte(name), "disk")[:16]) }

func (k *Keys) derive(salt []byte, what string) []byte {
	key, err := hkdf.Key(sha256.New, k.master[:], salt, "tidemark vault 1 "+what, len(Master{}))
	if err != nil {
		panic("vault: HKDF: " + err.Error()) // of a length that it cannot make
	}
	return key
}

// cipher returns what seals for one purpose.
func (k *Keys) cipher(salt []byte, what string) cipher.AEAD {
	block, err := aes.NewCipher(k.derive(salt, what))
	if err != nil {
		panic("vault: AES: " + err.Error()) // of a key that has not 32 bytes
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic("vault: GCM: " + err.Error()) // of a cipher that is not AES
	}
	return aead
}

var noNonce [12]byte

// WrapKey makes a key file: the master key of the vault whose object vault is header, for
// those who can read what is encrypted to the recipients.
func WrapKey(m Master, header []byte, recipients ...age.Recipient) ([]byte, error) {
	plain := make([]byte, keySize)
	copy(plain, keyMagic)
	binary.LittleEndian.PutUint32(plain[8:], version)
	copy(plain[16:], m[:])
	sum := blake3.Sum256(header)
	copy(plain[48:], sum[:])
	var out bytes.Buffer
	w, err := age.Encrypt(&out, recipients...)
	if err == nil {
		_, err = w.Write(plain)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("vault: key file: %w", err)
	}
	return out.Bytes(), nil
}

// UnwrapKey reads a key file of the vault whose object vault is header. The error wraps
// ErrKey where no identity fits.
func UnwrapKey(b, header []byte, identities ...age.Identity) (m Master, err error) {
	if m, err = unwrapKey(b, header, identities); err != nil {
		return Master{}, fmt.Errorf("vault: key file: %w", err)
	}
	return m, nil
}

func unwrapKey(b, header []byte, identities []age.Identity) (m Master, err error) {
	if len(b) > maxKeyFile {
		return m, fmt.Errorf("%w: %d bytes", ErrDamaged, len(b))
	}
	r, err := age.Decrypt(bytes.NewReader(b), identities...)
	if _, none := errors.AsType[*age.NoIdentityMatchError](err); none {
		return m, fmt.Errorf("%w: %w", ErrKey, err)
	} else if err != nil {
		return m, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	plain, err := io.ReadAll(io.LimitReader(r, keySize+1))
	if err != nil {
		return m, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	le := binary.LittleEndian
	sum := blake3.Sum256(header)
	switch {
	case len(plain) < 16 || string(plain[:8]) != keyMagic:
		return m, fmt.Errorf("%w: an age file with another content", ErrNotVault)
	case le.Uint32(plain[8:]) > version:
		return m, fmt.Errorf("%w: version %d, known is %d", ErrNewer, le.Uint32(plain[8:]), version)
	case len(plain) != keySize || le.Uint32(plain[8:]) != version || le.Uint32(plain[12:]) != 0:
		return m, fmt.Errorf("%w: %d bytes, version %d", ErrDamaged, len(plain), le.Uint32(plain[8:]))
	case string(plain[48:]) != string(sum[:]):
		return m, fmt.Errorf("%w: the key is that of another vault, or the object vault was swapped", ErrDamaged)
	}
	return Master(plain[16:]), nil
}

// KeyKinds tells to what a key file is encrypted, as the names of age: scrypt is a
// passphrase, X25519 and ssh-ed25519 are keys. It needs no key.
func KeyKinds(b []byte) ([]string, error) {
	if len(b) > maxKeyFile {
		return nil, fmt.Errorf("vault: key file: %w: %d bytes", ErrDamaged, len(b))
	}
	header, err := age.ExtractHeader(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("vault: key file: %w: %w", ErrDamaged, err)
	}
	var kinds []string
	for line := range bytes.Lines(header) {
		if f := bytes.Fields(line); len(f) > 1 && string(f[0]) == "->" {
			kinds = append(kinds, string(f[1]))
		}
	}
	return kinds, nil
}
