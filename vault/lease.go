package vault

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	format "tidemark/format/vault"
	"tidemark/vault/store"
)

// What a lease is for.
const (
	backup   = "backup"
	prune    = "prune"
	pruneNow = "prune --now"
	repair   = "repair"
)

// exclusive reports whether a work is done by nobody else at the same time.
func exclusive(work string) bool { return work == pruneNow || work == repair }

const (
	// leaseLasts is how long a lease counts after its holder died.
	leaseLasts = time.Hour
	renewEvery = leaseLasts / 4
)

// lease tells others that somebody is at work. It is renewed until it ends.
type lease struct {
	v     *Vault
	work  string
	mu    sync.Mutex
	name  string    // of the object, which renew changes
	first string    // name of the first
	begun time.Time // by the store's clock
	stop  context.CancelFunc
	ended sync.WaitGroup
}

// heldLease is a lease that somebody holds.
type heldLease struct {
	format.Lease
	name    string
	written time.Time // by the store's clock
}

// takeLease takes a lease. Between an exclusive work and any other the one is refused that sees the
// other: each writes its lease first, so at least one does.
func (v *Vault) takeLease(ctx context.Context, work string) (*lease, error) {
	l := &lease{v: v, work: work}
	if err := l.write(ctx); err != nil {
		return nil, err
	}
	all, err := v.leases(ctx)
	if err == nil {
		l.begun, err = l.judge(all)
	}
	if err != nil {
		return nil, errors.Join(err, v.store.Remove(ctx, l.name))
	}
	l.first = l.name
	renewing, stop := context.WithCancel(ctx)
	l.stop = stop
	l.ended.Go(func() { l.renew(renewing) })
	return l, nil
}

// judge returns when the lease was written, and refuses it beside others that are alive.
func (l *lease) judge(all []heldLease) (time.Time, error) {
	var now time.Time
	for _, other := range all {
		if other.name == l.name {
			now = other.written
		}
	}
	if now.IsZero() {
		return now, fmt.Errorf("vault: %v: %w: %s was written and is not there any more: did this machine sleep?", l.v.store, ErrOvertaken, l.name)
	}
	for _, other := range all {
		if other.name == l.name || !other.alive(now) {
			continue
		}
		if exclusive(l.work) || exclusive(other.Work) {
			return now, fmt.Errorf("vault: %v: %w: %s on %s, process %d: try again when it has ended, at the latest %v after it was killed", l.v.store, ErrBusy, other.Work, other.Host, other.Process, other.Lasts)
		}
	}
	return now, nil
}

// alive reports whether a lease has not ended. One that was written long after now is of a clock of the
// store that was ahead.
func (h heldLease) alive(now time.Time) bool {
	return now.Before(h.written.Add(h.Lasts)) && !h.written.After(now.Add(h.Lasts))
}

// began returns when the work of the lease began.
func (h heldLease) began() time.Time {
	if h.Begun.IsZero() {
		return h.written
	}
	return h.Begun
}

func (l *lease) write(ctx context.Context) error {
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("vault: lease: %w", err)
	}
	content, err := format.Lease{Work: l.work, Host: host, Process: os.Getpid(), Lasts: leaseLasts, Begun: l.begun.UTC()}.Encode()
	if err != nil {
		return err
	}
	name := format.LeaseName(newID())
	if err := l.v.seal(ctx, name, content); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.name = name
	return nil
}

// held reports whether the lease is still there: somebody may have removed it.
func (l *lease) held(ctx context.Context) (bool, error) {
	l.mu.Lock()
	name := l.name
	l.mu.Unlock()
	_, err := l.v.store.Get(ctx, name, 0, 1, nil)
	if errors.Is(err, store.ErrNotExist) {
		return false, nil
	}
	return true, err
}

// renew writes the lease anew before it ends. Where that fails it is tried again; a lease that ends
// makes nothing wrong: see Prune.
func (l *lease) renew(ctx context.Context) {
	t := time.NewTicker(renewEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			old := l.name
			if l.write(ctx) == nil {
				l.v.store.Remove(ctx, old) // what is left ends by itself
			}
		}
	}
}

// end gives the lease back. It does so when the work was given up, too.
func (l *lease) end() error {
	l.stop()
	l.ended.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return l.v.store.Remove(ctx, l.name)
}

// leases lists all leases that can be read. Others, such as that of a later version, count as
// alive for as long as one of ours.
func (v *Vault) leases(ctx context.Context) (all []heldLease, err error) {
	err = v.store.List(ctx, format.LeasesPrefix, func(i store.Info) error {
		all = append(all, heldLease{name: i.Name, written: i.Time})
		return nil
	})
	if err != nil {
		return nil, err
	}
	var there []heldLease
	for _, h := range all {
		h.Lease = format.Lease{Work: "somebody", Host: "a host", Lasts: leaseLasts}
		content, err := v.unseal(ctx, h.name)
		if errors.Is(err, store.ErrNotExist) {
			continue
		}
		if err == nil {
			if l, err := format.ParseLease(content); err == nil {
				h.Lease = l
			}
		} else if !errors.Is(err, format.ErrDamaged) && !errors.Is(err, format.ErrNewer) && !errors.Is(err, format.ErrNotVault) {
			return nil, err
		}
		there = append(there, h)
	}
	return there, nil
}

// deadPacks returns the packs that were declared dead.
func (v *Vault) deadPacks(ctx context.Context) (map[format.PackName]bool, error) {
	dead := map[format.PackName]bool{}
	err := v.store.List(ctx, format.DeadPrefix, func(i store.Info) error {
		if name, alien := format.ParsePackName(i.Name); alien == nil && strings.HasPrefix(i.Name, format.DeadPrefix) {
			dead[name] = true
		}
		return nil
	})
	return dead, err
}
