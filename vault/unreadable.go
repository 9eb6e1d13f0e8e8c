package vault

import (
	"context"
	"errors"
	"fmt"

	format "tidemark/format/vault"
	"tidemark/vault/store"
)

// sectors is a store in which what its disk cannot read is damaged, as what its disk reads wrongly:
// Verify tells of it and goes on, and so does who reads a point.
type sectors struct{ store.Store }

func (s sectors) Get(ctx context.Context, name string, off, n int64, room []byte) ([]byte, error) {
	b, err := s.Store.Get(ctx, name, off, n, room)
	if errors.Is(err, store.ErrUnreadable) {
		err = fmt.Errorf("%w: %w", format.ErrDamaged, err)
	}
	return b, err
}

// readable returns an object with zeros in place of what its disk cannot read.
func (v *Vault) readable(ctx context.Context, name string) (all []byte, err error) {
	const piece = 4096 // what a disk cannot read is mostly no more
	for len(all) <= format.MaxPack {
		b, err := v.store.Get(ctx, name, int64(len(all)), piece, nil)
		switch {
		case errors.Is(err, store.ErrUnreadable):
			b = make([]byte, piece)
		case err != nil:
			return nil, err
		}
		if all = append(all, b...); len(b) < piece {
			break
		}
	}
	return all, nil
}
