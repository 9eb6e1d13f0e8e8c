package vault

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"

	format "tidemark/format/vault"
	"tidemark/vault/store"
)

// In a vault with a lock of D nobody, whoever it is, can remove or replace a point until D after it
// appeared, to within the 15 minutes by which S3 lets clocks differ. The manifest is locked for D when it is put. All
// else that a point needs is locked for 3/2 D when it is put. Before the manifest is put, what it
// needs and whose lock ends within 9/8 D is locked for 3/2 D from then on; so an object is locked anew once in
// 3/8 D however many backups there are, and the D/8 is for what happens until the manifest is there.
//
// What was locked until when is kept in the index, and was so: nobody can shorten it. Others are not
// believed, such as objects of the vault that tell it: who has stolen the key could write them. What a
// point needs is known without its map where that is known of its base: the packs of that, those that were
// found to have chunks, and new ones.

// keepFor returns for how long the objects of a vault are locked when they are put.
func keepFor(lock time.Duration) func(name string) time.Duration {
	return func(name string) time.Duration {
		switch kind, _, _ := strings.Cut(name, "/"); kind + "/" {
		case format.PointsPrefix:
			return lock
		case format.HeaderName + "/", format.KeysPrefix, format.DisksPrefix, format.PacksPrefix:
			return lock + lock/2
		}
		return 0
	}
}

// initLock looks whether a new vault can have a lock, and has the store lock what is put.
func initLock(ctx context.Context, s store.Store, lock time.Duration) error {
	if lock < time.Second || lock > format.MaxLock || lock%time.Second != 0 {
		return fmt.Errorf("vault: a lock of %v: want whole seconds, at most %v", lock, format.MaxLock)
	}
	if err := s.Lockable(ctx); err != nil {
		return err
	}
	return s.LockFor(keepFor(lock))
}

// lockHolds fails when the store took a lock, and does not keep it.
func lockHolds(ctx context.Context, s store.Store, lock time.Duration) error {
	end, err := s.Locked(ctx, format.HeaderName)
	if err == nil && end.Before(time.Now().Add(lock)) {
		err = fmt.Errorf("vault: %v: %w: the server was asked to, and did not: remove %s, and use another server", s, store.ErrNoLock, format.HeaderName)
	}
	return err
}

// Lock returns for how long nobody can remove a point; 0: anybody can who may write to the store.
func (v *Vault) Lock() time.Duration { return v.header.Lock }

// locks reports whether the store locks objects: a copy of the vault in a folder does not.
func (v *Vault) locks() bool { return v.header.Lock > 0 && v.noLock == nil }

// LockedUntil returns until when a point is locked, or was; the zero time stands for never.
func (v *Vault) LockedUntil(ctx context.Context, name format.PointName) (time.Time, error) {
	if !v.locks() {
		return time.Time{}, nil
	}
	return v.store.Locked(ctx, name.String())
}

// lock has all that the sealed point needs be locked for as long as the point will be, and longer.
func (w *Writer) lock() error {
	if !w.v.locks() {
		return nil
	}
	d := w.v.header.Lock
	least := time.Now().Add(d + d/8)
	mine := map[string]time.Time{}
	for id := range w.packs.mine { // each was put later
		mine[format.PackName{ID: id}.String()] = w.began.Add(d + d/2)
	}
	if err := w.v.index.noteLocks(mine); err != nil {
		return err
	}
	needs, rest, err := w.needs(least)
	if err != nil {
		return err
	}
	packs, err := w.v.packNames(w.ctx, needs)
	if err != nil {
		return err
	}
	others, err := w.v.otherNeeds(w.ctx, w.from.Disk)
	if err != nil {
		return err
	}
	end, err := w.v.lockAll(w.ctx, append(packs, others...), least)
	if err != nil {
		return err
	}
	if rest.Before(end) {
		end = rest
	}
	return w.v.index.noteLocks(map[string]time.Time{w.sealed.Name.String(): end})
}

// needs returns packs that the sealed point needs, and until when the others that it needs are locked,
// which is not before least.
func (w *Writer) needs(least time.Time) (packs []format.ID, rest time.Time, err error) {
	rest = least.Add(w.v.header.Lock)
	if base := w.from.Base; base != nil {
		known, err := w.v.index.lockEnds(base.Name.String())
		if err != nil {
			return nil, rest, err
		}
		rest = known[base.Name.String()]
	}
	if !rest.Before(least) {
		w.usedMu.Lock()
		defer w.usedMu.Unlock()
		return slices.AppendSeq(slices.Collect(maps.Keys(w.used)), maps.Keys(w.packs.mine)), rest, nil
	}
	m, t := &marked{live: refSet{}}, w.v.treeOf(w.sealed.Point)
	err = m.page(w.ctx, t, t.top(format.Level(t.size)), false)
	return slices.Collect(maps.Keys(m.live)), least.Add(w.v.header.Lock), err
}

// packNames returns the objects that packs are now.
func (v *Vault) packNames(ctx context.Context, ids []format.ID) (names []string, err error) {
	have, err := v.index.packs()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		k, ok := have[id]
		if !ok {
			t, err := v.table(ctx, id)
			if err != nil {
				return nil, err
			}
			k = t.known
		}
		names = append(names, k.name.String())
	}
	return names, nil
}

// otherNeeds returns what any point of a disk needs beside packs.
func (v *Vault) otherNeeds(ctx context.Context, disk format.ID) ([]string, error) {
	names := []string{format.HeaderName, format.DiskName(disk)}
	err := v.store.List(ctx, format.KeysPrefix, func(i store.Info) error {
		names = append(names, i.Name)
		return nil
	})
	return names, err
}

// lockAll has objects be locked until least and beyond. Those that are known to be are not asked for. It
// returns until when all are.
func (v *Vault) lockAll(ctx context.Context, names []string, least time.Time) (end time.Time, err error) {
	known, err := v.index.lockEnds(names...)
	if err != nil {
		return end, err
	}
	short := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return !known[name].Before(least) })
	end = time.Now().Add(v.header.Lock + v.header.Lock/2)
	got := make([]time.Time, len(short))
	err = atOnce(ctx, len(short), func(ctx context.Context, i int) (err error) {
		got[i], err = v.store.Lock(ctx, short[i], end)
		if errors.Is(err, store.ErrNotExist) {
			err = fmt.Errorf("vault: %w: %w", ErrOvertaken, err)
		}
		return err
	})
	fresh := map[string]time.Time{}
	for i, name := range short {
		if !got[i].IsZero() {
			fresh[name] = got[i]
		}
	}
	if err := errors.Join(err, v.index.noteLocks(fresh)); err != nil {
		return end, err
	}
	maps.Copy(known, fresh)
	for _, name := range names {
		if known[name].Before(end) {
			end = known[name]
		}
	}
	return end, nil
}

// lockEnds returns until when packs are locked, of those that are at that time.
func (v *Vault) lockEnds(ctx context.Context, packs []generation, now time.Time) (map[string]time.Time, error) {
	if !v.locks() {
		return nil, nil
	}
	var names []string
	for _, g := range packs {
		names = append(names, g.name.String())
	}
	known, err := v.index.lockEnds(names...)
	if err != nil {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(name string) bool { return known[name].After(now) })
	got := make([]time.Time, len(names))
	err = atOnce(ctx, len(names), func(ctx context.Context, i int) (err error) {
		if got[i], err = v.store.Locked(ctx, names[i]); errors.Is(err, store.ErrNotExist) {
			err = nil
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	fresh := map[string]time.Time{}
	for i, name := range names {
		if delete(known, name); got[i].After(now) {
			fresh[name] = got[i]
		}
	}
	maps.Copy(known, fresh)
	return known, v.index.noteLocks(fresh)
}

// locksBucket of the index: name of an object → until when it is locked, in seconds since 1970; name of
// a point → until when all that it needs is.
var locksBucket = []byte("locks")

// lockEnds returns what is known of some objects.
func (x *index) lockEnds(names ...string) (map[string]time.Time, error) {
	ends := map[string]time.Time{}
	return ends, x.view(func(tx *bbolt.Tx) error {
		b := tx.Bucket(locksBucket)
		if b == nil { // nothing was locked yet
			return nil
		}
		for _, name := range names {
			if end := b.Get([]byte(name)); len(end) == 8 {
				ends[name] = time.Unix(int64(binary.LittleEndian.Uint64(end)), 0)
			}
		}
		return nil
	})
}

// noteLocks keeps until when objects are locked, and forgets of others what has ended.
func (x *index) noteLocks(ends map[string]time.Time) error {
	if len(ends) == 0 {
		return nil
	}
	return x.write(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(locksBucket)
		if err != nil {
			return err
		}
		now := uint64(time.Now().Unix())
		var ended [][]byte
		err = b.ForEach(func(name, end []byte) error {
			if len(end) != 8 || binary.LittleEndian.Uint64(end) < now {
				ended = append(ended, name)
			}
			return nil
		})
		for _, name := range ended {
			err = errors.Join(err, b.Delete(name))
		}
		for name, end := range ends {
			err = errors.Join(err, b.Put([]byte(name), binary.LittleEndian.AppendUint64(nil, uint64(end.Unix()))))
		}
		return err
	})
}
