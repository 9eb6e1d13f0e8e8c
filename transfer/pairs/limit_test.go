package pairs_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"tidemark/transfer/pairs"
)

// A limit holds when n bytes at r bytes a second take n/r or longer, but for what may
// be read at once; how much longer is the machine's business.
func TestALimitIsNotExceeded(t *testing.T) {
	const (
		size  = 6 << 20
		burst = 1 << 20
		limit = 4 << 20
	)
	dir := t.TempDir()
	source := filepath.Join(dir, "source.img")
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i>>12) | 1
	}
	if err := os.WriteFile(source, data, 0o600); err != nil {
		t.Fatal(err)
	}
	pair := []pairs.Pair{{Source: source, Target: filepath.Join(dir, "mirror.img")}}
	began := time.Now()
	reports, err := pairs.Mirror(context.Background(), pair, pairs.Options{BytesPerSec: limit, StateDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if reports[0].Read != size {
		t.Fatalf("%d bytes were read, not %d", reports[0].Read, size)
	}
	least := time.Duration(float64(size-burst) / limit * float64(time.Second))
	if took := time.Since(began); took < least {
		t.Errorf("%d bytes at %d a second took %v, less than %v", size, limit, took, least)
	}
}
