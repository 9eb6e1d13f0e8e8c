package vault

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
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

	writing sync.Mutex // while what waits is written
	mu      sync.Mutex
	waiting map[format.ID]*table       // of new packs, which are not in the file yet
	fresh   map[format.Hash]format.Ref // their chunks
}

// waitingChunks is how many chunks wait until they are written to the file. Their hashes lie all over
// it, so that each write of it is one of most of it.
const waitingChunks = 1 << 12

// piecesWritten is how many of them one change of the file writes.
const piecesWritten = waitingChunks / 8

// The buckets of the file.
var (
	metaBucket   = []byte("meta")   // "vault" → id of the vault
	packsBucket  = []byte("packs")  // id → generation, size, entries of the table
	chunksBucket = []byte("chunks") // hash → id of a pack, number of a segment
	vaultKey     = []byte("vault")
)

const packValueHead = 12 // generation and size

const (
	// indexFiles is how many processes of a machine keep an index of one vault: a backup that goes on
	// for ever, a prune beside it, and some more.
	indexFiles = 4
	// briefly is how long the others are waited for before one more is made.
	briefly = 500 * time.Millisecond
	noWait  = time.Millisecond // 0 stands for ever with bbolt
)

// openIndex opens an index of a vault in a folder: one that no other process uses, of those that are
// there. Where there is none, and others do not end soon, one more is made, and stays for the next
// time; note is told, as all tables are then read from the store.
func openIndex(id format.ID, folder string, note func(string)) (*index, error) {
	if folder == "" {
		return ownIndex(id)
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, fmt.Errorf("vault: cache: %w", err)
	}
	for i := range indexFiles {
		path := indexPath(folder, id, i)
		if _, missing := os.Lstat(path); missing != nil && i > 0 {
			if x, err := openIndexAt(indexPath(folder, id, 0), id, briefly); !errors.Is(err, bolterrors.ErrTimeout) {
				return x, err
			}
			note(fmt.Sprintf("another process uses what is cached of the vault: making %s from all that is stored", path))
		}
		if x, err := openIndexAt(path, id, noWait); !errors.Is(err, bolterrors.ErrTimeout) {
			return x, err
		}
	}
	note(fmt.Sprintf("%d other processes use what is cached of the vault in %s: reading it anew for this one alone", indexFiles, folder))
	return ownIndex(id)
}

func indexPath(folder string, id format.ID, i int) string {
	if i == 0 {
		return filepath.Join(folder, id.String()+".index")
	}
	return filepath.Join(folder, fmt.Sprintf("%v-%d.index", id, i+1))
}

// openIndexAt opens an index, or makes it. One that cannot be read is made anew. The error wraps
// ErrTimeout of bbolt while another process uses it.
func openIndexAt(path string, id format.ID, wait time.Duration) (*index, error) {
	db, err := openBolt(path, id, wait)
	if err != nil && !errors.Is(err, bolterrors.ErrTimeout) {
		if err = os.Remove(path); err == nil {
			db, err = openBolt(path, id, wait)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("vault: cache %s: %w", path, err)
	}
	return &index{db: db, tables: newTables(), waiting: map[format.ID]*table{}, fresh: map[format.Hash]format.Ref{}}, nil
}

// ownIndex makes an index that close removes.
func ownIndex(id format.ID) (*index, error) {
	own, err := os.MkdirTemp("", "tidemark-vault-")
	if err != nil {
		return nil, fmt.Errorf("vault: cache: %w", err)
	}
	x, err := openIndexAt(filepath.Join(own, "index"), id, noWait)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(own))
	}
	x.remove = own
	return x, nil
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

// update changes the file, after what waits was written.
func (x *index) update(f func(*bbolt.Tx) error) error {
	if err := x.flush(); err != nil {
		return err
	}
	return x.write(f)
}

func (x *index) write(f func(*bbolt.Tx) error) error {
	return guard(x.db.Path(), func() error { return x.db.Update(f) })
}

// later puts the table of a new pack into the index, and into the file when many wait for that. Where
// that does not come to pass the pack is one that the index does not know.
func (x *index) later(t *table) error {
	x.mu.Lock()
	x.waiting[t.name.ID] = t
	for _, s := range t.Segments {
		if s.Kind == format.Chunk {
			x.fresh[s.Hash] = format.Ref{Pack: t.name.ID, Segment: s.Number}
		}
	}
	many := len(x.fresh) >= waitingChunks || len(x.waiting) >= waitingChunks/64
	x.mu.Unlock()
	if !many {
		return nil
	}
	return x.flush()
}

// flush writes what waits. Chunks are written in pieces of their order: a change of the file has in
// memory all pages that it touches, and the tables come last.
func (x *index) flush() error {
	x.writing.Lock()
	defer x.writing.Unlock()
	x.mu.Lock()
	waiting := slices.Collect(maps.Values(x.waiting))
	x.mu.Unlock()
	if len(waiting) == 0 {
		return nil
	}
	for piece := range slices.Chunk(placesOf(waiting), piecesWritten) {
		if err := x.write(func(tx *bbolt.Tx) error { return putChunks(tx, piece) }); err != nil {
			return err
		}
	}
	err := x.write(func(tx *bbolt.Tx) error {
		for _, t := range waiting {
			if err := putTable(tx, t); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, t := range waiting {
		delete(x.waiting, t.name.ID)
		for _, s := range t.Segments {
			if x.fresh[s.Hash].Pack == t.name.ID {
				delete(x.fresh, s.Hash)
			}
		}
	}
	return nil
}

func openBolt(path string, id format.ID, wait time.Duration) (*bbolt.DB, error) {
	var db *bbolt.DB
	err := guard(path, func() (err error) {
		db, err = bbolt.Open(path, 0o600, &bbolt.Options{Timeout: wait, FreelistType: bbolt.FreelistMapType})
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
	err := errors.Join(x.flush(), x.db.Close())
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
			if err := putTable(tx, t); err != nil {
				return err
			}
		}
		return putChunks(tx, placesOf(tables))
	})
}

func putTable(tx *bbolt.Tx, t *table) error {
	value := binary.LittleEndian.AppendUint32(nil, t.name.Generation)
	value = binary.LittleEndian.AppendUint64(value, uint64(t.size))
	value = append(value, format.EncodeSegments(t.Segments)...)
	return tx.Bucket(packsBucket).Put(t.name.ID[:], value)
}

// chunkPlace is a key of the bucket of chunks, and its value.
type chunkPlace struct {
	hash  format.Hash
	place [20]byte // id of the pack, number of the segment
}

// placesOf returns the chunks of tables in the order in which they lie in the file.
func placesOf(tables []*table) (all []chunkPlace) {
	for _, t := range tables {
		for _, s := range t.Segments {
			if s.Kind != format.Chunk {
				continue
			}
			p := chunkPlace{hash: s.Hash}
			copy(p.place[:], t.name.ID[:])
			binary.LittleEndian.PutUint32(p.place[len(t.name.ID):], s.Number)
			all = append(all, p)
		}
	}
	slices.SortFunc(all, func(a, b chunkPlace) int { return bytes.Compare(a.hash[:], b.hash[:]) })
	return all
}

func putChunks(tx *bbolt.Tx, all []chunkPlace) error {
	chunks := tx.Bucket(chunksBucket)
	for i := range all {
		if err := chunks.Put(all[i].hash[:], all[i].place[:]); err != nil {
			return err
		}
	}
	return nil
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
	x.mu.Lock()
	ref, ok = x.fresh[h]
	x.mu.Unlock()
	if ok {
		return ref, true, nil
	}
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
	x.mu.Lock()
	t = x.waiting[id]
	x.mu.Unlock()
	if t != nil {
		return t, nil
	}
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
	if err := x.flush(); err != nil {
		return nil, err
	}
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
