package sinktest_test

import (
	"math/rand/v2"
	"testing"

	"tidemark/internal/sinktest"
)

func TestMemoryIsASink(t *testing.T) {
	newWorld := func(*testing.T, *rand.Rand) sinktest.World { return sinktest.NewMemory(4096) }
	sinktest.Run(t, 4096, newWorld)
	sinktest.Resumes(t, 4096, newWorld)
}
