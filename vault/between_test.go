package vault

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"

	format "tidemark/format/vault"
	"tidemark/vault/store"
)

// between is a store in which something happens before a call, and which may have another clock.
type between struct {
	store.Store
	before func(op, name string) error
	ahead  func(name string) time.Duration
}

func (b between) Get(ctx context.Context, name string, off, n int64, room []byte) ([]byte, error) {
	if err := b.before("get", name); err != nil {
		return nil, err
	}
	return b.Store.Get(ctx, name, off, n, room)
}

func (b between) List(ctx context.Context, prefix string, each func(store.Info) error) error {
	if err := b.before("list", prefix); err != nil {
		return err
	}
	return b.Store.List(ctx, prefix, func(i store.Info) error {
		if b.ahead != nil {
			i.Time = i.Time.Add(b.ahead(i.Name))
		}
		return each(i)
	})
}

func (b between) Put(ctx context.Context, name string, data []byte) error {
	if err := b.before("put", name); err != nil {
		return err
	}
	return b.Store.Put(ctx, name, data)
}

func (b between) Remove(ctx context.Context, name string) error {
	if err := b.before("remove", name); err != nil {
		return err
	}
	return b.Store.Remove(ctx, name)
}

func nothing(string, string) error { return nil }

// What a call that failed was told may be lost: the point must not be finished without it.
func TestAWriterThatFailedIsGivenUp(t *testing.T) {
	s, _ := folder(t)
	fail := false
	b := between{Store: s, before: func(op, name string) error {
		if fail && op == "get" && strings.HasPrefix(name, "packs/") {
			fail = false
			return fmt.Errorf("%w: injected", store.ErrLost)
		}
		return nil
	}}
	p := point(t, open(t, b, Options{}), From{Size: 1 << 20}, map[int64][]byte{0: noise(1, 1<<20)})
	w, err := open(t, b, Options{}).Begin(t.Context(), From{Size: 1 << 20, Disk: format.ID{9}, Base: &p})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.Put(4096, noise(2, 4096)); err != nil {
		t.Fatal(err)
	}
	fail = true
	if err := w.Seal(format.Point{Moment: time.Now()}); !errors.Is(err, store.ErrLost) {
		t.Fatal(err)
	}
	for what, again := range map[string]func() error{
		"seal": func() error { return w.Seal(format.Point{Moment: time.Now()}) },
		"put":  func() error { _, err := w.Put(0, noise(2, 4096)); return err },
	} {
		if err := again(); !errors.Is(err, store.ErrLost) {
			t.Errorf("%s again: %v", what, err)
		}
	}
	if _, err := w.Publish(); err == nil {
		t.Error("it appeared")
	}
}

func TestTwoThatMakeADiskOfOneNameMakeOne(t *testing.T) {
	s, _ := folder(t)
	var both, made sync.WaitGroup
	both.Add(2)
	b := between{Store: s, before: func(op, name string) error {
		if op == "put" && strings.HasPrefix(name, "disks/") {
			both.Done()
			both.Wait()
		}
		return nil
	}}
	var ids [2]format.ID
	for i := range ids {
		v := open(t, b, Options{})
		made.Go(func() {
			d, err := v.AddDisk(t.Context(), format.Disk{Name: "same", Host: fmt.Sprint(i)})
			if err != nil {
				t.Error(err)
			}
			ids[i] = d.ID
		})
	}
	made.Wait()
	all, err := open(t, s, Options{}).Disks(t.Context())
	if err != nil || len(all) != 1 || ids[0] != ids[1] || ids[0] != all[0].ID {
		t.Errorf("%v, %v, %v", ids, all, err)
	}
}

func TestTwoThatRemoveTheLastKeysLeaveOne(t *testing.T) {
	mine, yours := identity(t), identity(t)
	s, _ := folder(t, mine.Recipient())
	o := Options{Identities: []age.Identity{mine, yours}}
	v := open(t, s, o)
	if _, err := v.AddKey(t.Context(), yours.Recipient()); err != nil {
		t.Fatal(err)
	}
	keys, err := v.Keys(t.Context())
	if err != nil || len(keys) != 2 {
		t.Fatal(keys, err)
	}
	done := false
	b := between{Store: s, before: func(op, name string) error {
		if op == "remove" && !done {
			done = true
			return v.RemoveKey(t.Context(), keys[1].ID)
		}
		return nil
	}}
	if err := open(t, b, o).RemoveKey(t.Context(), keys[0].ID); !errors.Is(err, ErrLastKey) {
		t.Errorf("the last key was removed: %v", err)
	}
	open(t, s, o)
}

// A machine that was paused has no clock that tells: the store's does.
func TestAWriterThatWasPausedLooksAgain(t *testing.T) {
	for _, ahead := range []time.Duration{26 * time.Hour, -time.Hour} {
		s, _ := folder(t)
		v := open(t, s, Options{})
		old := point(t, v, From{Size: 1 << 20}, map[int64][]byte{0: noise(1, 1<<20)})
		b := between{Store: s, before: nothing, ahead: func(name string) time.Duration {
			if strings.HasPrefix(name, format.PointsPrefix) && name != old.Name.String() {
				return ahead
			}
			return 0
		}}
		w, err := open(t, b, Options{}).Begin(t.Context(), From{Size: 1 << 20, Disk: format.ID{8}})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		if _, err := w.Put(0, noise(1, 1<<20)); err != nil {
			t.Fatal(err)
		}
		if err := w.Seal(format.Point{Moment: time.Now()}); err != nil {
			t.Fatal(err)
		}
		err = s.List(t.Context(), format.PacksPrefix, func(i store.Info) error {
			return s.Remove(t.Context(), i.Name) // as a prune that nobody told of this writer
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Publish(); !errors.Is(err, ErrOvertaken) {
			t.Errorf("%v: %v", ahead, err)
		}
		if all, err := v.Points(t.Context(), format.ID{8}); err != nil || len(all) != 0 {
			t.Errorf("%v: it is there: %v, %v", ahead, all, err)
		}
	}
}
