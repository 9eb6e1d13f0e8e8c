package history

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
)

// idBytes is the length of an id before it is written in hex.
const idBytes = 8

// NewID returns the id of a new generation, at random: 16 hex digits.
func NewID() (string, error) {
	id := make([]byte, idBytes)
	if _, err := rand.Read(id); err != nil {
		return "", fmt.Errorf("track: generation id: %w", err)
	}
	return hex.EncodeToString(id), nil
}

// IsID reports whether s is an id as NewID writes it.
func IsID(s string) bool {
	raw, err := hex.DecodeString(s)
	return err == nil && len(raw) == idBytes && hex.EncodeToString(raw) == s
}
