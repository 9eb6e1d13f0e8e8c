package history

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"tidemark/linux/atomicfile"
	"tidemark/track"
)

const (
	leasesFile   = "leases.json"
	maxOwners    = 64 // named owners; the stalest goes when one more comes
	maxAnonymous = 16 // marks without an owner, the newest
	maxDropped   = 256
	anonymous    = "user:"
)

// Lease keeps the history since a mark for its owner.
type Lease struct {
	Mark  track.Mark `json:"mark"`
	Epoch uint64     `json:"epoch"` // that begins with the mark
	Time  time.Time  `json:"time"`  // when it was last renewed
	// Quiet: nothing was in flight at the mark, so that completions missed later are
	// no harm to it.
	Quiet bool `json:"settled,omitempty"`
}

// Leases is the content of leases.json.
type Leases struct {
	Owners  map[string]Lease  `json:"owners"`
	Next    uint64            `json:"next"`              // number of the next anonymous mark
	Dropped map[uint64]string `json:"dropped,omitempty"` // why a mark's history is gone, by epoch
}

// Leases reads the leases; none is no error. The error wraps atomicfile.ErrDamaged
// when the file makes no sense.
func (h *History) Leases() (Leases, error) {
	var l Leases
	err := atomicfile.ReadJSON(filepath.Join(h.Dir, leasesFile), &l)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Leases{}, fmt.Errorf("track: leases: %w", err)
	}
	if l.Owners == nil {
		l.Owners = map[string]Lease{}
	}
	if l.Dropped == nil {
		l.Dropped = map[uint64]string{}
	}
	for owner, one := range l.Owners {
		if !one.Mark.Valid() || one.Epoch == 0 {
			return Leases{}, fmt.Errorf("track: %s: %w: mark of %q", leasesFile, atomicfile.ErrDamaged, owner)
		}
	}
	return l, nil
}

func (h *History) save(l Leases) error {
	return Unwritable(atomicfile.WriteJSON(filepath.Join(h.Dir, leasesFile), atomicfile.Options{Mode: 0o600}, l))
}

// Keep sets or, with an empty mark, ends an owner's lease, and drops the stalest of
// the others when there are more than 64.
func (l *Leases) Keep(owner string, one Lease) {
	if one.Mark == "" {
		delete(l.Owners, owner)
		return
	}
	l.Owners[owner] = one
	l.trim(false, maxOwners,
		fmt.Sprintf("more than %d owners keep marks, and this one was the longest not renewed", maxOwners))
}

// Remember keeps a mark without an owner, the newest 16, unless an owner keeps it. A
// moment that is kept so already becomes the newest.
func (l *Leases) Remember(one Lease) {
	for o, other := range l.Owners {
		if other.Mark != one.Mark {
			continue
		}
		if !strings.HasPrefix(o, anonymous) {
			return
		}
		one.Quiet = one.Quiet || other.Quiet
		delete(l.Owners, o)
	}
	l.Owners[anonymous+strconv.FormatUint(l.Next, 10)] = one
	l.Next++
	l.trim(true, maxAnonymous,
		fmt.Sprintf("only the newest %d marks are kept without an owner", maxAnonymous))
}

// Quiet reports whether an owner vouched that nothing was in flight at the beginning
// of the epoch.
func (l *Leases) Quiet(epoch uint64) bool {
	for _, one := range l.Owners {
		if one.Epoch == epoch && one.Quiet {
			return true
		}
	}
	return false
}

// trim drops the stalest of the anonymous marks, or of the others, until no more than
// limit are left.
func (l *Leases) trim(unowned bool, limit int, why string) {
	owners := slices.DeleteFunc(slices.Collect(maps.Keys(l.Owners)), func(o string) bool {
		return strings.HasPrefix(o, anonymous) != unowned
	})
	slices.SortFunc(owners, func(a, b string) int {
		x, y := l.Owners[a], l.Owners[b]
		return cmp.Or(x.Time.Compare(y.Time), cmp.Compare(x.Epoch, y.Epoch))
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
func (l *Leases) boundaries() []uint64 {
	var b []uint64
	for _, one := range l.Owners {
		b = append(b, one.Epoch)
	}
	slices.Sort(b)
	return slices.Compact(b)
}
