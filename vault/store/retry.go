package store

import (
	"context"
	"errors"
	"time"
)

const (
	firstPause = time.Second
	lastPause  = time.Minute
	// patience is for how long a store may be gone: a router that starts anew, a server
	// that is updated.
	patience = 10 * time.Minute
)

// Retry returns a store that asks s again when the connection was lost, after a second and then
// later and later, for ten minutes in all. What s refuses is refused at once. Before each pause
// waits, if it is not nil, is told why, and how long it will be.
func Retry(s Store, waits func(err error, d time.Duration)) Store {
	return &retry{Store: s, pause: pause, waits: waits}
}

type retry struct {
	Store
	waits func(err error, d time.Duration)
	pause func(ctx context.Context, d time.Duration) error
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func (r *retry) again(ctx context.Context, f func() error) error {
	err := f()
	waited := time.Duration(0)
	for d := firstPause; errors.Is(err, ErrLost) && waited < patience; d = min(2*d, lastPause) {
		if r.waits != nil {
			r.waits(err, d)
		}
		if ended := r.pause(ctx, d); ended != nil {
			return errors.Join(err, ended)
		}
		waited += d
		err = f()
	}
	return err
}

func (r *retry) Put(ctx context.Context, name string, data []byte) error {
	return r.again(ctx, func() error { return r.Store.Put(ctx, name, data) })
}

func (r *retry) Get(ctx context.Context, name string, off, n int64, room []byte) (b []byte, err error) {
	err = r.again(ctx, func() (err error) {
		b, err = r.Store.Get(ctx, name, off, n, room)
		return err
	})
	return b, err
}

// List asks for the whole list first, so that no object is told twice.
func (r *retry) List(ctx context.Context, prefix string, each func(Info) error) error {
	var all []Info
	err := r.again(ctx, func() error {
		all = all[:0]
		return r.Store.List(ctx, prefix, func(i Info) error {
			all = append(all, i)
			return nil
		})
	})
	for _, i := range all {
		if err != nil {
			break
		}
		err = each(i)
	}
	return err
}

func (r *retry) Remove(ctx context.Context, name string) error {
	return r.again(ctx, func() error { return r.Store.Remove(ctx, name) })
}

func (r *retry) Lockable(ctx context.Context) error {
	return r.again(ctx, func() error { return r.Store.Lockable(ctx) })
}

func (r *retry) Lock(ctx context.Context, name string, until time.Time) (end time.Time, err error) {
	err = r.again(ctx, func() (err error) {
		end, err = r.Store.Lock(ctx, name, until)
		return err
	})
	return end, err
}

func (r *retry) Locked(ctx context.Context, name string) (end time.Time, err error) {
	err = r.again(ctx, func() (err error) {
		end, err = r.Store.Locked(ctx, name)
		return err
	})
	return end, err
}
