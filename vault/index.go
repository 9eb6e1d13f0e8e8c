package vault

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	format "tidemark/format/vault"
)

// index is what is known of packs without asking the store: in which of them a chunk lies, and
// what their tables say. It is a cache: what is not in it is read from the packs.
type index struct {
	db     *bbolt.DB
	remove string // a folder that close removes
	tables *lru[format.ID, *table]
}

// The buckets of the file.
var (
	metaBucket   = []byte("meta")   // "vault" → id of the vault
	packsBucket  = []byte("packs")  // id → generation, size, entries of the table
	chunksBucket = []byte("chunks") // hash → id of a pack, number of a segment
	vaultKey     = []byte("vault")
)

const packValueHead = 12 // generation and size

// openIndex opens the index of a vault in a folder. One that cannot be read is made anew, and one
// that another process uses is left alone.
func openIndex(id format.ID, folder string) (*index, error) {
	if folder != "" {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			return nil, fmt.Errorf("vault: cache: %w", err)
		}
		path := filepath.Join(folder, id.String()+".index")
		db, err := openBolt(path, id)
		if err != nil && !errors.Is(err, bolterrors.ErrTimeout) {
			if err = os.Remove(path); err == nil {
				db, err = openBolt(path, id)
			}
		}
		if err == nil {
			return &index{db: db, tables: newTables()}, nil
		}
		if !errors.Is(err, bolterrors.ErrTimeout) {
			return nil, fmt.Errorf("vault: cache %s: %w", path, err)
		}
	}
	own, err := os.MkdirTemp("", "tidemark-vault-")
	if err != nil {
		return nil, fmt.Errorf("vault: cache: %w", err)
	}
	db, err := openBolt(filepath.Join(own, "index"), id)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("vault: cache: %w", err), os.RemoveAll(own))
	}
	return &index{db: db, remove: own, tables: newTables()}, nil
}

func newTables() *lru[format.ID, *table] {
	return newHeavyLRU[format.ID](segmentsKnown, func(t *table) int { return len(t.Segments) })
}

// guard has an error in place of a panic: bbolt trusts what its pages say, and a file that has rotted
// may lead it anywhere. The list of free pages is in the file for the same reason: without it bbolt
// walks all pages in a goroutine of its own, whose panics nobody can catch.
func guard(path string, f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("vault: the cache %s is damaged (%v): remove it", path, p)
		}
	}()
	return f()
}

func (x *index) view(f func(*bbolt.Tx) error) error {
	return guard(x.db.Path(), func() error { return x.db.View(f) })
}

func (x *index) update(f func(*bbolt.Tx) error) error {
	return guard(x.db.Path(), func() error { return x.db.Update(f) })
}

func openBolt(path string, id format.ID) (*bbolt.DB, error) {
	var db *bbolt.DB
	err := guard(path, func() (err error) {
		db, err = bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Millisecond, FreelistType: bbolt.FreelistMapType})
		return err
	})
	if err != nil {
		return nil, err
	}
	if err = guard(path, func() error { return prepare(db, id) }); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// prepare makes the buckets of a new file, and refuses that of another vault. It writes nothing to
// one that has them.
func prepare(db *bbolt.DB, id format.ID) error {
	var fits bool
	err := db.View(func(tx *bbolt.Tx) error {
		if meta := tx.Bucket(metaBucket); meta != nil && tx.Bucket(packsBucket) != nil && tx.Bucket(chunksBucket) != nil {
			fits = bytes.Equal(meta.Get(vaultKey), id[:])
		}
		return nil
	})
	if err != nil || fits {
		return err
	}
	return db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{metaBucket, packsBucket, chunksBucket} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		meta := tx.Bucket(metaBucket)
		if old := meta.Get(vaultKey); old != nil && format.ID(old) != id {
			return errors.New("it is of another vault")
		}
		return meta.Put(vaultKey, id[:])
	})
}

func (x *index) close() error {
	err := x.db.Close()
	if x.remove != "" {
		err = errors.Join(err, os.RemoveAll(x.remove))
	}
	return err
}

// known is a pack that the index or the vault knows.
type known struct {
	name format.PackName
	size int64 // bytes
}

// add puts tables into the index. Those of an older generation of their packs are forgotten.
func (x *index) add(tables ...*table) error {
	return x.update(func(tx *bbolt.Tx) error {
		for _, t := range tables {
			if err := forget(tx, t.name.ID); err != nil {
				return err
			}
			id := t.name.ID
			value := binary.LittleEndian.AppendUint32(nil, t.name.Generation)
			value = binary.LittleEndian.AppendUint64(value, uint64(t.size))
			value = append(value, format.EncodeSegments(t.Segments)...)
			if err := tx.Bucket(packsBucket).Put(id[:], value); err != nil {
				return err
			}
			for _, s := range t.Segments {
				if s.Kind != format.Chunk {
					continue
				}
				place := binary.LittleEndian.AppendUint32(id[:len(id):len(id)], s.Number)
				if err := tx.Bucket(chunksBucket).Put(s.Hash[:], place); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// renew puts the table of a pack, as the store has it, into the index, when that has another.
func (x *index) renew(t *table) error {
	old, err := x.table(t.name.ID)
	if err == nil && old != nil && old.known == t.known && slices.Equal(old.Segments, t.Segments) {
		return nil
	}
	x.tables.drop(t.name.ID)
	return x.add(t)
}

// drop takes packs out of the index.
func (x *index) drop(packs ...format.ID) error {
	return x.update(func(tx *bbolt.Tx) error {
		for _, id := range packs {
			if err := forget(tx, id); err != nil {
				return err
			}
		}
		return nil
	})
}

// reset forgets all.
func (x *index) reset() error {
	x.tables = newTables()
	return x.update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{packsBucket, chunksBucket} {
			if err := tx.DeleteBucket(name); err != nil {
				return err
			}
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		return nil
	})
}

func forget(tx *bbolt.Tx, id format.ID) error {
	t, err := decodeTable(id, tx.Bucket(packsBucket).Get(id[:]))
	if err != nil || t == nil {
		return err
	}
	chunks := tx.Bucket(chunksBucket)
	for _, s := range t.Segments {
		if place := chunks.Get(s.Hash[:]); s.Kind == format.Chunk && place != nil && format.ID(place) == id {
			if err := chunks.Delete(s.Hash[:]); err != nil {
				return err
			}
		}
	}
	return tx.Bucket(packsBucket).Delete(id[:])
}

// find returns in which segment a chunk lies.
func (x *index) find(h format.Hash) (ref format.Ref, ok bool, err error) {
	err = x.view(func(tx *bbolt.Tx) error {
		if place := tx.Bucket(chunksBucket).Get(h[:]); len(place) == len(ref.Pack)+4 {
			ref, ok = format.Ref{Pack: format.ID(place), Segment: binary.LittleEndian.Uint32(place[len(ref.Pack):])}, true
		}
		return nil
	})
	return ref, ok, err
}

// table returns the table of a pack, nil where it is not known.
func (x *index) table(id format.ID) (t *table, err error) {
	err = x.view(func(tx *bbolt.Tx) (err error) {
		t, err = decodeTable(id, tx.Bucket(packsBucket).Get(id[:]))
		return err
	})
	return t, err
}

func decodeTable(id format.ID, value []byte) (*table, error) {
	if value == nil {
		return nil, nil
	}
	if len(value) < packValueHead {
		return nil, fmt.Errorf("vault: cache: the table of pack %v has %d bytes: remove the cache", id, len(value))
	}
	all, err := format.DecodeSegments(value[packValueHead:])
	if err != nil {
		return nil, fmt.Errorf("vault: cache: pack %v: %w: remove the cache", id, err)
	}
	name := format.PackName{ID: id, Generation: binary.LittleEndian.Uint32(value)}
	return &table{known: known{name, int64(binary.LittleEndian.Uint64(value[4:]))}, Table: format.Table{Name: name, Segments: all}}, nil
}

// packs returns all packs that the index knows.
func (x *index) packs() (all map[format.ID]known, err error) {
	all = map[format.ID]known{}
	err = x.view(func(tx *bbolt.Tx) error {
		return tx.Bucket(packsBucket).ForEach(func(k, v []byte) error {
			if len(k) != 16 || len(v) < packValueHead {
				return fmt.Errorf("vault: the cache %s is damaged: remove it", x.db.Path())
			}
			id := format.ID(k)
			all[id] = known{format.PackName{ID: id, Generation: binary.LittleEndian.Uint32(v)}, int64(binary.LittleEndian.Uint64(v[4:]))}
			return nil
		})
	})
	return all, err
}
