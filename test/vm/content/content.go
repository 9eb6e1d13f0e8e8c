// Package content says what a test's source holds after each of its steps. The guest
// writes it and the host compares with it, without a byte of it going between them.
//
// Its functions always return the same, and may be called at the same time.
package content

import (
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
)

const (
	// Size is the length of the source in bytes.
	Size = 8 << 20
	// Steps is how many contents there are.
	Steps = 5

	block = 4096
)

// After returns the content after a step, from 0 on. The first has data all over, and
// gaps; each later one differs from the one before in small and large extents, some of
// which become zeros, the last one in a single block.
func After(step int) []byte {
	p := make([]byte, Size)
	source := rand.NewChaCha8([32]byte{1})
	fill(source, p)
	for i := range 6 {
		clear(p[i<<20 : i<<20+1<<19])
	}
	for s := 1; s <= step; s++ {
		change(p, s)
	}
	return p
}

// change makes the content of step s of the one before.
func change(p []byte, s int) {
	source := rand.NewChaCha8([32]byte{0, byte(s)})
	rng := rand.New(source)
	if s == Steps-1 {
		fill(source, p[Size-block:])
		return
	}
	for range 24 {
		fill(source, piece(rng, p, 4))
	}
	for range 3 {
		fill(source, piece(rng, p, 80))
	}
	for range 4 {
		clear(piece(rng, p, 40))
	}
}

// piece returns a part of p of up to most blocks.
func piece(rng *rand.Rand, p []byte, most int) []byte {
	n := 1 + rng.IntN(most)
	at := rng.IntN(len(p)/block - n + 1)
	return p[at*block : (at+n)*block]
}

func fill(source *rand.ChaCha8, p []byte) {
	source.Read(p) //nolint:errcheck // it never fails
}

// Sum names a content for messages.
func Sum(p []byte) string {
	sum := sha256.Sum256(p)
	return hex.EncodeToString(sum[:6])
}
