package mirror_test

import (
	"errors"
	"math/rand/v2"
	"testing"

	"tidemark/format/state"
	"tidemark/internal/faultdisk"
	"tidemark/internal/sinktest"
	"tidemark/transfer"
	"tidemark/transfer/mirror"
)

// sinkWorld keeps a mirror on disks that fail.
type sinkWorld struct{ *faultdisk.World }

func (w sinkWorld) Open(size int64) (transfer.Sink, func() error, error) {
	store, err := mirror.Open(w.Target(), w.Folder())
	if err != nil {
		return nil, nil, err
	}
	s := &mirror.Sink{Store: store, Name: "target", Origin: state.Source{Path: "source"}}
	if !store.Exists() || !store.State().Complete && store.State().Size != size {
		if err := store.Init(size, blockSize, s.Origin, len(w.World.Content()) > 0); err != nil {
			return nil, nil, errors.Join(err, store.Close())
		}
	}
	return s, store.Close, nil
}

// Content returns the target of a complete mirror.
func (w sinkWorld) Content() []byte {
	store, err := mirror.Open(w.Target(), w.Folder())
	if err != nil {
		return nil
	}
	defer store.Close()
	if !store.State().Complete {
		return nil
	}
	return w.World.Content()
}

func TestAMirrorIsASink(t *testing.T) {
	newWorld := func(_ *testing.T, rng *rand.Rand) sinktest.World { return sinkWorld{faultdisk.New(rng)} }
	sinktest.Run(t, blockSize, newWorld)
	sinktest.Resumes(t, blockSize, newWorld)
}
