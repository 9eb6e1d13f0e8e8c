package vault

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"

	format "tidemark/format/vault"
	"tidemark/vault/store"
)

// table is what is known of a pack.
type table struct {
	known
	format.Table
	once   sync.Once
	opener *format.Opener // once it was asked for
}

// opener returns what opens the segments of a pack: to derive its key takes as long as to open some.
func (v *Vault) opener(t *table) *format.Opener {
	t.once.Do(func() { t.opener = v.keys.Opener(t.name.ID) })
	return t.opener
}

// object is an object of a store as an io.ReaderAt. It reads more than it is asked for at the
// end, where the table of a pack lies.
type object struct {
	ctx  context.Context
	s    store.Store
	name string
	size int64
	tail []byte // the last bytes, once they were read
}

const tailSize = 64 << 10 // the table of a full pack of chunks is smaller

func (o *object) ReadAt(p []byte, off int64) (int, error) {
	from := max(0, o.size-tailSize)
	if off < from {
		b, err := o.s.Get(o.ctx, o.name, off, int64(len(p)), nil)
		return short(copy(p, b), p, err)
	}
	if o.tail == nil {
		b, err := o.s.Get(o.ctx, o.name, from, o.size-from, nil)
		if err != nil {
			return 0, err
		}
		o.tail = b
	}
	return short(copy(p, o.tail[min(off-from, int64(len(o.tail))):]), p, nil)
}

func short(n int, p []byte, err error) (int, error) {
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// readTable reads the table of a pack from the store.
func (v *Vault) readTable(ctx context.Context, k known) (*table, error) {
	t, err := v.keys.ReadTable(&object{ctx: ctx, s: v.store, name: k.name.String(), size: k.size}, k.size, k.name)
	if err != nil {
		return nil, err
	}
	return &table{known: k, Table: *t}, nil
}

// table returns the table of a pack, from memory, the index, or the store.
func (v *Vault) table(ctx context.Context, id format.ID) (*table, error) {
	if t, ok := v.index.tables.get(id); ok {
		return t, nil
	}
	t, err := v.index.table(id)
	if err != nil {
		return nil, err
	}
	if t == nil {
		if t, err = v.lookUp(ctx, id); err != nil {
			return nil, err
		}
		if err := v.index.add(t); err != nil {
			return nil, err
		}
	}
	v.index.tables.put(id, t)
	return t, nil
}

// exactTable returns the table of a generation, from the index or the store.
func (v *Vault) exactTable(ctx context.Context, k known) (*table, error) {
	if t, err := v.index.table(k.name.ID); err != nil || t != nil && t.known == k {
		return t, err
	}
	return v.readTable(ctx, k)
}

// lookUp finds the newest generation of a pack in the store.
func (v *Vault) lookUp(ctx context.Context, id format.ID) (*table, error) {
	all, err := v.generations(ctx, id)
	if err == nil && len(all) == 0 {
		err = fmt.Errorf("vault: pack %v is missing: %w", id, format.ErrDamaged)
	}
	if err != nil {
		return nil, err
	}
	return v.readTable(ctx, all[0])
}

func (v *Vault) listPacks(ctx context.Context, prefix string, each func(known) error) error {
	return v.store.List(ctx, prefix, func(i store.Info) error {
		name, alien := format.ParsePackName(i.Name)
		if alien != nil {
			return nil
		}
		return each(known{name, i.Size})
	})
}

// sync makes the index know the packs of the store, and no others. Packs whose tables cannot be
// read stay out of it, so that nothing new refers to them; Verify tells of them.
func (v *Vault) sync(ctx context.Context) error {
	there := map[format.ID]known{}
	err := v.listPacks(ctx, format.PacksPrefix, func(k known) error {
		if old, ok := there[k.name.ID]; !ok || old.name.Generation < k.name.Generation {
			there[k.name.ID] = k
		}
		return nil
	})
	if err != nil {
		return err
	}
	have, err := v.index.packs()
	if err != nil {
		return err
	}
	var gone []format.ID
	for id, k := range have {
		if there[id] != k {
			gone = append(gone, id)
			v.index.tables.drop(id)
		} else {
			delete(there, id)
		}
	}
	if len(gone) > 0 {
		if err := v.index.drop(gone...); err != nil {
			return err
		}
	}
	return v.learn(ctx, there)
}

// learn reads the tables of packs into the index.
func (v *Vault) learn(ctx context.Context, packs map[format.ID]known) error {
	for some := range slices.Chunk(slices.Collect(maps.Values(packs)), requests) {
		tables := make([]*table, len(some))
		err := atOnce(ctx, len(some), func(ctx context.Context, i int) (err error) {
			tables[i], err = v.readTable(ctx, some[i])
			if errors.Is(err, format.ErrDamaged) || errors.Is(err, format.ErrNotVault) || errors.Is(err, store.ErrNotExist) {
				return nil
			}
			return err
		})
		if err != nil {
			return err
		}
		tables = slices.DeleteFunc(tables, func(t *table) bool { return t == nil })
		if err := v.index.add(tables...); err != nil {
			return err
		}
	}
	return nil
}

// segment returns the plain bytes of a segment of that kind. They lie in room where that is large
// enough.
func (v *Vault) segment(ctx context.Context, ref format.Ref, isPage bool, room []byte) ([]byte, error) {
	b, err := v.readSegment(ctx, ref, isPage, room)
	if errors.Is(err, store.ErrNotExist) { // the pack has a newer generation
		v.index.tables.drop(ref.Pack)
		v.others.drop(ref.Pack)
		if err := v.index.drop(ref.Pack); err != nil {
			return nil, err
		}
		if b, err = v.readSegment(ctx, ref, isPage, room); errors.Is(err, store.ErrNotExist) {
			err = fmt.Errorf("vault: %v: %w: %w", ref, format.ErrDamaged, err)
		}
	}
	return b, err
}

func (v *Vault) readSegment(ctx context.Context, ref format.Ref, isPage bool, room []byte) ([]byte, error) {
	t, err := v.table(ctx, ref.Pack)
	if err != nil {
		return nil, err
	}
	s, ok := t.Find(ref.Segment)
	if !ok {
		if t, err = v.otherTable(ctx, ref, t.known); err != nil {
			return nil, err
		}
		s, _ = t.Find(ref.Segment)
	}
	if (s.Kind == format.Page) != isPage {
		return nil, fmt.Errorf("vault: %v: %w: it is a %v", ref, format.ErrDamaged, s.Kind)
	}
	var plain []byte
	err = v.ahead.read(ctx, t.known, s.Place, s.Stored, func(stored []byte) (err error) {
		plain, err = v.opener(t).Open(v.codec, s, stored, room)
		return err
	})
	return plain, err
}

// otherTable returns that of another generation of a pack, one that has the segment: Prune may have
// left it out of the newest one when the point that needs it had not appeared yet.
func (v *Vault) otherTable(ctx context.Context, ref format.Ref, not known) (*table, error) {
	if t, ok := v.others.get(ref.Pack); ok {
		if _, there := t.Find(ref.Segment); there {
			return t, nil
		}
	}
	all, err := v.generations(ctx, ref.Pack)
	if err != nil {
		return nil, err
	}
	for _, k := range all {
		if k == not {
			continue
		}
		t, err := v.readTable(ctx, k)
		if err != nil && ours(err) {
			continue
		} else if err != nil {
			return nil, err
		}
		if _, there := t.Find(ref.Segment); there {
			v.others.put(ref.Pack, t)
			return t, nil
		}
	}
	return nil, fmt.Errorf("vault: %v: %w: the pack has no such segment", ref, format.ErrDamaged)
}

// generations lists those of a pack, the newest first.
func (v *Vault) generations(ctx context.Context, id format.ID) (all []known, err error) {
	some := format.PackName{ID: id}.String()
	err = v.listPacks(ctx, some[:len(some)-1], func(k known) error { // without the generation
		all = append(all, k)
		return nil
	})
	slices.SortFunc(all, func(a, b known) int { return cmp.Compare(b.name.Generation, a.name.Generation) })
	return all, err
}
