package vault

import (
	"encoding/binary"
	"fmt"
)

const (
	sealedMagic = "TMSEALED"
	sealedHead  = 32
	maxSealed   = 1 << 20 // of what is sealed, bytes
)

// Salt makes a key that seals once. It must be random.
type Salt [16]byte

// Seal returns the object of that name with that content, which may have 1 MiB less 16 bytes.
func (k *Keys) Seal(name string, salt Salt, content []byte) ([]byte, error) {
	n := len(content) + tagSize
	if n > maxSealed {
		return nil, fmt.Errorf("vault: %s: %d bytes are more than an object has room for, which is %d", name, len(content), maxSealed-tagSize)
	}
	b := make([]byte, sealedHead, sealedHead+n+sumSize)
	copy(b, sealedMagic)
	binary.LittleEndian.PutUint32(b[8:], version)
	binary.LittleEndian.PutUint32(b[12:], uint32(n))
	copy(b[16:], salt[:])
	b = k.cipher(salt[:], "object "+name).Seal(b, noNonce[:], content, b)
	b = b[:len(b)+sumSize]
	putSum(b)
	return b, nil
}

// Unseal returns the content of the object of that name, and its salt.
func (k *Keys) Unseal(name string, b []byte) (content []byte, salt Salt, err error) {
	if err = CheckSealed(b); err == nil {
		salt = Salt(b[16:])
		aead := k.cipher(salt[:], "object "+name)
		content, err = aead.Open(nil, noNonce[:], b[sealedHead:len(b)-sumSize], b[:sealedHead])
		if err != nil {
			err = fmt.Errorf("%w: its seal does not hold: it was altered, or is another object", ErrDamaged)
		}
	}
	if err != nil {
		return nil, salt, fmt.Errorf("vault: %s: %w", name, err)
	}
	return content, salt, nil
}

// CheckSealed checks what can be checked of a sealed object without a key.
func CheckSealed(b []byte) error {
	if len(b) > MaxSealed {
		return fmt.Errorf("%w: %d bytes are more than an object has", ErrDamaged, len(b))
	}
	if err := envelope(b, sealedMagic, sealedHead+tagSize+sumSize); err != nil {
		return err
	}
	if n := binary.LittleEndian.Uint32(b[12:]); int64(n) != int64(len(b)-sealedHead-sumSize) {
		return fmt.Errorf("%w: it says that %d bytes are sealed, and has %d", ErrDamaged, n, len(b)-sealedHead-sumSize)
	}
	return nil
}
