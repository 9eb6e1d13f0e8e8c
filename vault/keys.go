package vault

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"filippo.io/age"

	format "tidemark/format/vault"
	"tidemark/vault/store"
)

const (
	maxKeyFile = 1 << 20 // bytes
	// maxKeys is how many key files are read: others can put some beside those of the vault.
	maxKeys = 1000
)

// unlock finds the master key.
func (v *Vault) unlock(ctx context.Context, identities []age.Identity) error {
	switch {
	case v.header.Open != nil && len(identities) > 0:
		return fmt.Errorf("vault: %v: %w: is it the right one?", v.store, ErrNotEncrypted)
	case v.header.Open != nil:
		v.master = *v.header.Open
		return nil
	case len(identities) == 0:
		return fmt.Errorf("vault: %v: %w: it is encrypted, and no key was given", v.store, format.ErrKey)
	}
	keys, err := v.keyFiles(ctx)
	if err != nil {
		return err
	}
	var faults []error
	for _, k := range keys {
		v.master, err = format.UnwrapKey(k.raw, v.raw, identities...)
		if err == nil {
			return nil
		}
		if !errors.Is(err, format.ErrKey) { // another key file may do
			faults = append(faults, fmt.Errorf("%s: %w", k.ID, err))
		}
	}
	faults = append(faults, fmt.Errorf("vault: %v: %w: it has %d key files", v.store, format.ErrKey, len(keys)))
	return errors.Join(faults...)
}

// Key is a key file.
type Key struct {
	ID format.ID
	// Kinds tells to what it is encrypted: scrypt is a passphrase, X25519 and ssh-ed25519 are
	// keys. Empty: the file is damaged.
	Kinds []string
	raw   []byte
}

// Keys lists the key files.
func (v *Vault) Keys(ctx context.Context) ([]Key, error) { return v.keyFiles(ctx) }

func (v *Vault) keyFiles(ctx context.Context) (keys []Key, err error) {
	var names []string
	err = v.store.List(ctx, format.KeysPrefix, func(i store.Info) error {
		if names = append(names, i.Name); len(names) > maxKeys {
			return fmt.Errorf("vault: %v: more than %d key files: %w", v.store, maxKeys, format.ErrDamaged)
		}
		return nil
	})
	for _, name := range names {
		if err != nil {
			break
		}
		id, alien := format.ParseID(strings.TrimPrefix(name, format.KeysPrefix))
		if alien != nil {
			continue
		}
		k := Key{ID: id}
		if k.raw, err = v.object(ctx, name, maxKeyFile+1); err == nil {
			k.Kinds, _ = format.KeyKinds(k.raw) // none tell of the damage
			keys = append(keys, k)
		}
	}
	return keys, err
}

// AddKey makes another key file, for all of the recipients. Nothing else is touched.
func (v *Vault) AddKey(ctx context.Context, recipients ...age.Recipient) (format.ID, error) {
	if !v.Encrypted() {
		return format.ID{}, fmt.Errorf("vault: %v: %w: it has no keys", v.store, ErrNotEncrypted)
	}
	b, err := format.WrapKey(v.master, v.raw, recipients...)
	if err != nil {
		return format.ID{}, err
	}
	id := newID()
	return id, v.store.Put(ctx, format.KeyName(id), b)
}

// RemoveKey removes a key file, but not the last one. Who has opened the vault with it before may
// have kept the master key.
func (v *Vault) RemoveKey(ctx context.Context, id format.ID) error {
	keys, err := v.keyFiles(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(keys, func(k Key) bool { return k.ID == id })
	if i < 0 {
		return fmt.Errorf("vault: %v: there is no key %v", v.store, id)
	}
	last := func(keys []Key) error {
		if slices.ContainsFunc(keys, func(k Key) bool { return k.ID != id && len(k.Kinds) > 0 }) {
			return nil
		}
		return fmt.Errorf("vault: %v: %v: %w: nobody could read the vault any more", v.store, id, ErrLastKey)
	}
	if err := last(keys); err != nil {
		return err
	}
	if err := v.store.Remove(ctx, format.KeyName(id)); err != nil {
		return err
	}
	// Somebody else may have removed another one meanwhile.
	left, err := v.keyFiles(ctx)
	if err == nil {
		err = last(left)
	}
	if err != nil {
		err = errors.Join(err, v.store.Put(ctx, format.KeyName(id), keys[i].raw))
	}
	return err
}
