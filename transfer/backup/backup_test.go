package backup_test

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"tidemark/format/vault"
	"tidemark/internal/faulttree"
	"tidemark/internal/sinktest"
	"tidemark/transfer"
	"tidemark/transfer/backup"
	points "tidemark/vault"
	"tidemark/vault/store"
)

// world is a vault on a disk that can lose power.
type world struct {
	*faulttree.World
	t *testing.T
}

func newWorld(t *testing.T, rng *rand.Rand) sinktest.World {
	w := world{faulttree.New(rng), t}
	if err := points.Init(context.Background(), w.store()); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w world) store() store.Store { return store.OnFiles("world", w.World) }

var disk = points.Disk{ID: vault.ID{1}, Disk: vault.Disk{Name: "disk"}}

func (w world) Open(int64) (transfer.Sink, func() error, error) {
	v, err := points.Open(context.Background(), w.store(), points.Options{})
	if err != nil {
		return nil, nil, err
	}
	s, err := backup.Open(context.Background(), v, disk, backup.Options{})
	if err != nil {
		return nil, nil, errors.Join(err, v.Close())
	}
	return s, v.Close, nil
}

// Content reads the newest point.
func (w world) Content() []byte {
	ctx := context.Background()
	v, err := points.Open(ctx, w.store(), points.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	defer v.Close()
	p, err := v.Newest(ctx, disk.ID)
	if err != nil {
		w.t.Fatal(err)
	}
	if p == nil {
		return nil
	}
	b := make([]byte, p.Size)
	if _, err := v.Reader(ctx, *p).ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		w.t.Fatal(err)
	}
	return b
}

func TestSink(t *testing.T) {
	sinktest.Run(t, 4096, newWorld)
}
