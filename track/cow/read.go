package cow

import (
	"context"
	"errors"
	"fmt"

	"tidemark/extent"
	"tidemark/format/snapstore"
)

// looks is how often a store is read that looks damaged: the kernel may have been writing its
// last area, of which a read then has some sectors as they were and others as they are.
const looks = 5

// exceptions returns the chunks of the origin that the store has, clipped to the source.
func (t *Tracker) exceptions(ctx context.Context) (set extent.Set, err error) {
	for range looks {
		if set, err = t.read(ctx); !errors.Is(err, snapstore.ErrDamaged) {
			break
		}
	}
	return set, err
}

func (t *Tracker) read(ctx context.Context) (extent.Set, error) {
	store, err := t.openStore()
	if err != nil {
		return extent.Set{}, err
	}
	chunk, size := store.ChunkSize(), t.source.Size()
	var found []extent.Extent
	for e, err := range store.Exceptions() {
		if err == nil {
			err = context.Cause(ctx)
		}
		if err == nil && e.Old > uint64((size-1)/chunk) {
			err = fmt.Errorf("%w: an exception for chunk %d, behind the end of the source", snapstore.ErrDamaged, e.Old)
		}
		if err != nil {
			return extent.Set{}, fmt.Errorf("track: %s: %w", t.store.Path(), err)
		}
		off := int64(e.Old) * chunk
		length := min(chunk, size-off)
		if n := len(found); n > 0 && found[n-1].Off+found[n-1].Len == off {
			found[n-1].Len += length // written in order
			continue
		}
		found = append(found, extent.Extent{Off: off, Len: length})
	}
	return extent.NewSet(found...), nil
}

// openStore reads the store's header, which must be that of the snapshot.
func (t *Tracker) openStore() (*snapstore.Store, error) {
	store, err := snapstore.Open(t.store, t.store.Size())
	if err == nil {
		err = store.Valid()
	}
	if err == nil && store.ChunkSize() != t.found.snapshot.ChunkSize {
		err = fmt.Errorf("%w: its chunks have %d bytes, and those of %s %d", ErrUnfit, store.ChunkSize(), t.found.snapshot.Path(), t.found.snapshot.ChunkSize)
	}
	if err != nil {
		return nil, fmt.Errorf("track: %s: %w", t.store.Path(), err)
	}
	return store, nil
}
