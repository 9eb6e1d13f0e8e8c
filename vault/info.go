package vault

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	format "tidemark/format/vault"
	"tidemark/vault/store"
)

// readHeader reads the object vault of a store.
func readHeader(ctx context.Context, s store.Store) (h format.Header, raw []byte, err error) {
	raw, err = s.Get(ctx, format.HeaderName, 0, 4096, nil)
	if errors.Is(err, store.ErrNotExist) {
		return h, nil, fmt.Errorf("%w in %v: make one with init, or mount what it lies on: %w", ErrNoVault, s, err)
	} else if err != nil {
		return h, nil, err
	}
	h, err = format.ParseHeader(raw)
	return h, raw, err
}

// Encrypted reports whether the vault in a store is opened by a key, without opening it. Its
// errors are those of Open.
func Encrypted(ctx context.Context, s store.Store) (bool, error) {
	h, _, err := readHeader(ctx, s)
	return h.Open == nil, err
}

// Stored returns how many packs there are, and how many bytes they take.
func (v *Vault) Stored(ctx context.Context) (packs int, bytes int64, err error) {
	err = v.listPacks(ctx, format.PacksPrefix, func(k known) error {
		packs, bytes = packs+1, bytes+k.size
		return nil
	})
	return packs, bytes, err
}

// Stored returns how many bytes of packs were written so far.
func (w *Writer) Stored() int64 {
	w.packs.mu.Lock()
	defer w.packs.mu.Unlock()
	return w.packs.stored
}

// Cache returns the folder of the cache that is used.
func (v *Vault) Cache() string { return filepath.Dir(v.index.db.Path()) }
