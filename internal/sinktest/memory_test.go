package sinktest_test

import (
	"math/rand/v2"
	"testing"

	"tidemark/internal/sinktest"
)

func TestMemoryIsASink(t *testing.T) {
	sinktest.Run(t, 4096, func(*testing.T, *rand.Rand) sinktest.World {
		return sinktest.NewMemory(4096)
	})
}
