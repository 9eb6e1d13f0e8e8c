// Package vault keeps points of disks: each a full one, stored once, sealed.
//
// For most uses, Init makes a vault in a store and Open opens it. Begin starts a new point, from an
// earlier one or from nothing, and Writer.Commit makes it appear. Points lists what there is; a
// Reader has the bytes of a point. Diff, Forget, Prune and Verify do what they say. The bytes are
// those of package format/vault.
//
// A point appears in one step, after everything that it needs is durable, so a crash leaves garbage
// and no damage. Writers wait neither for each other nor for Prune; why Prune removes nothing
// that is needed is derived at Prune. Memory does not grow with a disk, but for about 60 bytes
// for each 16 MiB of it that a Writer changes, and in Prune and Verify for each pack some tens of
// bytes and a bit for each segment.
//
// Who has the storage and not the key cannot alter anything unnoticed, but can remove a point, or bring
// one back that was forgotten, with its packs.
//
// What is kept in the folder of the cache can be made again from the vault, and is when it is
// missing. The package refuses a vault that is damaged, or newer than it, with the errors of
// format/vault. A Vault and a Reader may be used by several goroutines at once, and so may
// Writer.Put.
package vault

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"filippo.io/age"
	"golang.org/x/sync/errgroup"

	format "tidemark/format/vault"
	"tidemark/vault/store"
)

var (
	// ErrNoVault says that there is no vault in a store.
	ErrNoVault = errors.New("there is no vault")
	// ErrNotEncrypted says that a key was given for a vault that is not encrypted: it may be
	// another one.
	ErrNotEncrypted = errors.New("the vault is not encrypted, and a key was given")
	// ErrLastKey says that no other key opens the vault.
	ErrLastKey = errors.New("it is the only key")
	// ErrBusy says that somebody is at work in the vault who must be waited for.
	ErrBusy = errors.New("the vault is in use")
	// ErrOvertaken says that what a new point needs was removed meanwhile.
	ErrOvertaken = errors.New("what the point needs was removed while it was written: begin anew")
)

const (
	segmentsKnown = 1 << 19 // in tables in memory: of 64 bytes each
	leavesKept    = 32      // of up to 600 KiB, mostly of 20 to 200
	innersKept    = 64      // of 20 KiB
	segmentsKept  = 256     // of ChunkSize or runSize, which are the same
)

// requests is how much is asked of a store at once: it may be far.
const requests = 16

// atOnce calls f with 0 to n-1, several at a time.
func atOnce(ctx context.Context, n int, f func(ctx context.Context, i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(requests)
	for i := range n {
		g.Go(func() error { return cmp.Or(ctx.Err(), f(ctx, i)) })
	}
	return g.Wait()
}

// Vault is an open vault.
type Vault struct {
	store  store.Store
	header format.Header
	raw    []byte // the object vault
	master format.Master
	keys   *format.Keys
	codec  *format.Codec
	index  *index
	ahead  *ahead
	noLock error // why the store does not lock objects, though the vault has a lock

	leaves   *lru[format.Ref, format.Leaf]
	inners   *lru[format.Ref, *format.Inner]
	segments *segments
	others   *lru[format.ID, *table] // of older generations
}

// Init makes a vault in a store in which there is none. Its master key goes to the recipients;
// without any the vault is not encrypted.
func Init(ctx context.Context, s store.Store, recipients ...age.Recipient) error {
	return InitLocked(ctx, s, 0, recipients...)
}

// InitLocked makes a vault in which nobody, whoever it is, can remove a point before that time has passed
// since it was made, nor what it needs; 0 stands for none. The error wraps store.ErrNoLock where
// objects cannot be locked.
func InitLocked(ctx context.Context, s store.Store, lock time.Duration, recipients ...age.Recipient) error {
	if _, err := s.Get(ctx, format.HeaderName, 0, 1, nil); err == nil {
		return fmt.Errorf("vault: %v: %w: a vault is there already", s, store.ErrExists)
	} else if !errors.Is(err, store.ErrNotExist) {
		return err
	}
	if lock != 0 {
		if err := initLock(ctx, s, lock); err != nil {
			return err
		}
	}
	if err := probe(ctx, s); err != nil {
		return err
	}
	h, master := format.Header{ID: newID(), Lock: lock}, format.Master{}
	rand.Read(master[:])
	if len(recipients) == 0 {
		h.Open = &master
		return putHeader(ctx, s, h)
	}
	key, err := format.WrapKey(master, h.Encode(), recipients...)
	if err != nil {
		return err
	}
	name := format.KeyName(newID())
	if err := s.Put(ctx, name, key); err != nil {
		return err
	}
	if err := putHeader(ctx, s, h); err != nil {
		return errors.Join(err, s.Remove(ctx, name))
	}
	return nil
}

func putHeader(ctx context.Context, s store.Store, h format.Header) error {
	err := s.Put(ctx, format.HeaderName, h.Encode())
	if err == nil && h.Lock != 0 {
		err = lockHolds(ctx, s, h.Lock)
	}
	return err
}

// probe refuses a store that replaces objects, as two writers could damage each other's, and one whose
// lists lag, as a writer could use what a prune has declared dead.
func probe(ctx context.Context, s store.Store) error {
	name := store.TempPrefix + newID().String()
	if err := s.Put(ctx, name, []byte{1}); err != nil {
		return err
	}
	err := s.Put(ctx, name, []byte{2})
	if err == nil {
		err = fmt.Errorf("vault: %v replaces an object that exists: it cannot hold a vault", s)
	} else if errors.Is(err, store.ErrExists) {
		err = listed(ctx, s, name)
	}
	return errors.Join(err, s.Remove(ctx, name))
}

// listed fails when a store does not list an object that was put.
func listed(ctx context.Context, s store.Store, name string) error {
	there := false
	err := s.List(ctx, name, func(i store.Info) error {
		there = there || i.Name == name
		return nil
	})
	if err == nil && !there {
		err = fmt.Errorf("vault: %v does not list what was just put: it cannot hold a vault", s)
	}
	return err
}

// Options say how a vault is opened.
type Options struct {
	// Identities open one of its key files. None stands for a vault that is not encrypted.
	Identities []age.Identity
	// Cache is the folder for what can be made again. "" stands for one that is removed
	// by Close. Each process of several at once has a file of its own there.
	Cache string
	// Note is told when all that is there is in use, so that another file is made from the tables of all
	// packs. It may be nil.
	Note func(text string)
}

// Open opens the vault in a store. The error wraps ErrNoVault, ErrNotEncrypted, or format.ErrKey,
// format.ErrDamaged or format.ErrNewer.
func Open(ctx context.Context, s store.Store, o Options) (*Vault, error) {
	h, raw, err := readHeader(ctx, s)
	if err != nil {
		return nil, err
	}
	v := &Vault{store: sectors{s}, header: h, raw: raw}
	if h.Lock > 0 {
		v.noLock = s.LockFor(keepFor(h.Lock))
	}
	v.forgetPages()
	if err := v.unlock(ctx, o.Identities); err != nil {
		return nil, err
	}
	v.keys = format.NewKeys(v.master)
	if v.codec, err = format.NewCodec(); err != nil {
		return nil, err
	}
	if o.Note == nil {
		o.Note = func(string) {}
	}
	if v.index, err = openIndex(v.header.ID, o.Cache, o.Note); err != nil {
		return nil, errors.Join(err, v.codec.Close())
	}
	return v, nil
}

// forgetPages makes what was read before be read again.
func (v *Vault) forgetPages() {
	v.ahead = newAhead(v.store)
	v.leaves = newLRU[format.Ref, format.Leaf](leavesKept)
	v.inners = newLRU[format.Ref, *format.Inner](innersKept)
	v.segments = new(segments)
	v.others = newTables()
}

// Close ends the use of a vault. Its store stays open.
func (v *Vault) Close() error { return errors.Join(v.index.close(), v.codec.Close()) }

// ID returns the id of the vault.
func (v *Vault) ID() format.ID { return v.header.ID }

// Encrypted reports whether a key is needed to read the vault.
func (v *Vault) Encrypted() bool { return v.header.Open == nil }

func newID() (id format.ID) {
	for id.IsZero() {
		rand.Read(id[:])
	}
	return id
}

func newSalt() (s format.Salt) {
	rand.Read(s[:])
	return s
}

// seal puts a sealed object.
func (v *Vault) seal(ctx context.Context, name string, content []byte) error {
	b, err := v.keys.Seal(name, newSalt(), content)
	if err != nil {
		return err
	}
	return v.store.Put(ctx, name, b)
}

// object gets an object, or so many bytes of it. Nearly all are small.
func (v *Vault) object(ctx context.Context, name string, limit int64) ([]byte, error) {
	const most = 16 << 10 // bytes, of nearly all
	b, err := v.store.Get(ctx, name, 0, most, nil)
	if err == nil && len(b) == most {
		b, err = v.store.Get(ctx, name, 0, limit, nil)
	}
	return b, err
}

// unseal gets the content of a sealed object.
func (v *Vault) unseal(ctx context.Context, name string) ([]byte, error) {
	b, err := v.object(ctx, name, format.MaxSealed+1)
	if err != nil {
		return nil, err
	}
	content, _, err := v.keys.Unseal(name, b)
	return content, err
}
