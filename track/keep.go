package track

import (
	"context"
	"path/filepath"
	"time"
)

// Traits say that changes are named and the ends of writes are seen.
func (l *Live) Traits() Traits { return Traits{NamesChanges: true} }

// Drain does nothing.
func (l *Live) Drain(context.Context) error { return nil }

// Keep keeps the history since m for the owner. When there are more than 64
// owners, the one who did not come for longest loses its mark. The error wraps
// ErrMarkLost when m is lost already.
func (l *Live) Keep(ctx context.Context, owner string, m Mark, quiet bool) error {
	if quiet {
		l.mu.Lock()
		l.settled[m] = true
		l.mu.Unlock()
	}
	one, err := l.lease(ctx, m)
	if err != nil {
		return err
	}
	return l.updateLeases(ctx, func(ls *leases) { ls.keep(owner, one) })
}

// Remember keeps the history since m for whoever may ask: the newest 16 such
// marks are kept.
func (l *Live) Remember(ctx context.Context, m Mark) error {
	one, err := l.lease(ctx, m)
	if err != nil {
		return err
	}
	return l.updateLeases(ctx, func(ls *leases) { ls.remember(one) })
}

// Renew makes a mark that Remember keeps the newest of them. A mark that an owner
// keeps is kept already.
func (l *Live) Renew(ctx context.Context, m Mark) error {
	one, err := l.lease(ctx, m)
	if err != nil {
		return err
	}
	return l.updateLeases(ctx, func(ls *leases) {
		if !ls.owned(m) {
			ls.remember(one)
		}
	})
}

func (l *Live) lease(ctx context.Context, m Mark) (lease, error) {
	if m == "" {
		return lease{}, nil
	}
	// Whether the epoch that is open now spoils m is found when it has ended.
	now, err := l.now(ctx)
	if err != nil {
		return lease{}, err
	}
	if _, err := l.Changes(ctx, m, l.mark(now.Epoch)); err != nil {
		return lease{}, err
	}
	at, err := m.parse()
	if err != nil {
		return lease{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return lease{Mark: m, Epoch: at.epoch, Time: time.Now().UTC(), Settled: l.settled[m]}, nil
}

func (l *Live) updateLeases(ctx context.Context, change func(*leases)) error {
	return l.withHistory(ctx, func(now uint64) error {
		ls, err := loadLeases(l.s.dir)
		if err != nil {
			return err
		}
		change(&ls)
		if err := ls.save(l.s.dir); err != nil {
			return err
		}
		return l.s.tidy(ctx, ls, now)
	})
}

// Persist writes the closed epochs to files, which frees their bitmaps, tidies
// the history and prepares the next Cut. Call it after a Cut, once nothing is
// frozen any more.
func (l *Live) Persist(ctx context.Context) error {
	err := l.withHistory(ctx, func(now uint64) error {
		ls, err := loadLeases(l.s.dir)
		if err != nil {
			return err
		}
		return l.s.tidy(ctx, ls, now)
	})
	if err != nil {
		return err
	}
	return l.withFlip(ctx, l.s.ensureSpare)
}

func (s *session) tidy(ctx context.Context, ls leases, now uint64) error {
	if err := s.persist(now); err != nil {
		return err
	}
	return s.compact(ctx, ls, now)
}

// withHistory calls f with the history lock held and the current epoch.
func (l *Live) withHistory(ctx context.Context, f func(now uint64) error) error {
	lock, err := lockPath(ctx, filepath.Join(l.s.dir, historyLock))
	if err != nil {
		return err
	}
	defer lock.unlock()
	h, err := l.now(ctx)
	if err != nil {
		return err
	}
	return f(h.Epoch)
}
