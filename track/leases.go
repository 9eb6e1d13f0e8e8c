package track

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	leasesFile   = "leases.json"
	maxOwners    = 64 // named owners; the stalest goes when one more comes
	maxAnonymous = 16 // marks without an owner, the newest
	maxDropped   = 256
	anonymous    = "user:"
)

// lease keeps the history since a mark for its owner.
type lease struct {
	Mark  Mark      `json:"mark"`
	Epoch uint64    `json:"epoch"`
	Time  time.Time `json:"time"` // when it was last renewed
	// Settled: nothing was in flight at the mark, so that completions missed
	// later are no harm to it.
	Settled bool `json:"settled,omitempty"`
}

// leases is the content of leases.json.
type leases struct {
	Owners  map[string]lease  `json:"owners"`
	Next    uint64            `json:"next"`              // number of the next anonymous mark
	Dropped map[uint64]string `json:"dropped,omitempty"` // why a mark's history is gone, by epoch
}

// loadLeases reads the leases of a disk; none is no error. The error wraps
// errDamagedState.
func loadLeases(dir string) (leases, error) {
	l := leases{}
	err := readJSON(filepath.Join(dir, leasesFile), &l)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return leases{}, err
	}
	if l.Owners == nil {
		l.Owners = map[string]lease{}
	}
	if l.Dropped == nil {
		l.Dropped = map[uint64]string{}
	}
	for owner, one := range l.Owners {
		if m, err := one.Mark.parse(); err != nil || m.epoch != one.Epoch {
			return leases{}, fmt.Errorf("track: %s: %w: mark of %q", leasesFile, errDamagedState, owner)
		}
	}
	return l, nil
}

func (l *leases) save(dir string) error {
	return writeJSON(filepath.Join(dir, leasesFile), l)
}

// keep sets or, with an empty mark, ends an owner's lease, and drops the
// stalest of the others when there are too many.
func (l *leases) keep(owner string, one lease) {
	if one.Mark == "" {
		delete(l.Owners, owner)
		return
	}
	l.Owners[owner] = one
	l.trim(func(o string) bool { return !strings.HasPrefix(o, anonymous) }, maxOwners,
		fmt.Sprintf("more than %d owners keep marks, and this one was the longest not renewed", maxOwners))
}

// remember keeps a mark without an owner. A moment already kept so is not kept
// twice.
func (l *leases) remember(one lease) {
	for o, other := range l.Owners {
		if strings.HasPrefix(o, anonymous) && other.Mark == one.Mark {
			one.Settled = one.Settled || other.Settled
			delete(l.Owners, o)
		}
	}
	l.Owners[anonymous+strconv.FormatUint(l.Next, 10)] = one
	l.Next++
	l.trim(func(o string) bool { return strings.HasPrefix(o, anonymous) }, maxAnonymous,
		fmt.Sprintf("only the newest %d marks are kept without an owner", maxAnonymous))
}

// owned reports whether a named owner keeps the mark.
func (l *leases) owned(m Mark) bool {
	for o, one := range l.Owners {
		if !strings.HasPrefix(o, anonymous) && one.Mark == m {
			return true
		}
	}
	return false
}

// trim drops the stalest of the owners that match until no more than limit are
// left.
func (l *leases) trim(match func(string) bool, limit int, why string) {
	owners := slices.DeleteFunc(slices.Collect(maps.Keys(l.Owners)), func(o string) bool { return !match(o) })
	slices.SortFunc(owners, func(a, b string) int {
		if c := l.Owners[a].Time.Compare(l.Owners[b].Time); c != 0 {
			return c
		}
		return int(int64(l.Owners[a].Epoch) - int64(l.Owners[b].Epoch))
	})
	for len(owners) > limit {
		l.Dropped[l.Owners[owners[0]].Epoch] = why
		delete(l.Owners, owners[0])
		owners = owners[1:]
	}
	for _, e := range slices.Sorted(maps.Keys(l.Dropped)) {
		if len(l.Dropped) <= maxDropped {
			break
		}
		delete(l.Dropped, e)
	}
}

// boundaries returns the epochs of all leases, ascending.
func (l *leases) boundaries() []uint64 {
	var b []uint64
	for _, one := range l.Owners {
		b = append(b, one.Epoch)
	}
	slices.Sort(b)
	return slices.Compact(b)
}

// settled reports whether someone vouched that nothing was in flight at the
// beginning of the epoch.
func (l *leases) settled(epoch uint64) bool {
	for _, one := range l.Owners {
		if one.Epoch == epoch && one.Settled {
			return true
		}
	}
	return false
}
