package vault

import (
	"cmp"
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Lease is one that somebody holds, or held.
type Lease struct {
	Name    string    `json:"name"` // of the object
	Work    string    `json:"work"`
	Host    string    `json:"host"`
	Process int       `json:"process"`
	Begun   time.Time `json:"begun"`   // by the store's clock
	Renewed time.Time `json:"renewed"` // the same
	// Ended tells that it counts no more: it was not renewed in time.
	Ended bool `json:"ended"`
	// Gone tells that it is of this host, where there is no such process.
	Gone bool `json:"gone"`
}

// Leases lists who is at work in the vault, or died at it, the oldest first.
func (v *Vault) Leases(ctx context.Context) ([]Lease, error) {
	l := &lease{v: v, work: "unlock"} // which tells what time it is
	if err := l.write(ctx); err != nil {
		return nil, err
	}
	all, err := v.leases(ctx)
	if err = errors.Join(err, v.store.Remove(ctx, l.name)); err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	var now time.Time
	for _, h := range all {
		if h.name == l.name {
			now = h.written
		}
	}
	var told []Lease
	for _, h := range all {
		if h.name == l.name {
			continue
		}
		gone := h.Host == host && errors.Is(unix.Kill(h.Process, 0), unix.ESRCH)
		told = append(told, Lease{
			Name: h.name, Work: h.Work, Host: h.Host, Process: h.Process, Begun: h.began(), Renewed: h.written,
			Ended: !h.alive(now), Gone: gone,
		})
	}
	slices.SortFunc(told, func(a, b Lease) int { return cmp.Or(a.Begun.Compare(b.Begun), cmp.Compare(a.Name, b.Name)) })
	return told, nil
}

// Unlock removes a lease. A backup that is at work all the same notices before its point appears, and
// looks whether all is there that the point needs.
func (v *Vault) Unlock(ctx context.Context, l Lease) error { return v.store.Remove(ctx, l.Name) }
