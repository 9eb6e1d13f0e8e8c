package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/track"
	"tidemark/track/bpf"
	"tidemark/words"
)

// lately is how long ago the mark is, at least, from which it is asked what changes.
const lately = 24 * time.Hour

// choice is how large a store has to be, and why.
type choice struct {
	size int64 // bytes
	why  string
}

// choose returns how large the store of a volume is when nobody says so, and there is room: a tenth of
// it, or what changed in the last day as far as the tracking knows, if that is more.
func (o Options) choose(ctx context.Context, v *Volume) (choice, error) {
	c := v.share
	id, err := block.IdentifyDev(v.Dev)
	if err != nil {
		return c, err
	}
	disks, err := bpf.List(ctx, o.Track)
	if err != nil {
		return c, err
	}
	i := slices.IndexFunc(disks, func(s bpf.Status) bool { return s.Disk == id.Disk })
	if i < 0 || disks[i].Lost != "" || len(disks[i].Marks) == 0 {
		return c, nil
	}
	m := since(disks[i].Marks, time.Now().Add(-lately))
	t, err := o.tracker(ctx, v)
	if err == nil {
		var set extent.Set
		set, err = t.Changes(ctx, m.Mark, "")
		if err = errors.Join(err, t.Close()); err == nil && set.Bytes() > c.size {
			c = choice{set.Bytes(), "as much as changed since " + words.Time(m.Time)}
		}
	}
	if errors.Is(err, bpf.ErrNotTracked) || errors.Is(err, track.ErrMarkLost) {
		return c, nil
	}
	return c, err
}

// since returns the newest of marks that is not younger than a time, else the oldest.
func since(marks []bpf.MarkStatus, at time.Time) bpf.MarkStatus {
	slices.SortFunc(marks, func(a, b bpf.MarkStatus) int { return b.Time.Compare(a.Time) })
	for _, m := range marks {
		if !m.Time.After(at) {
			return m
		}
	}
	return marks[len(marks)-1]
}

// Sized tells how the size of the store of a volume was chosen, in the process that did; "" when the
// caller gave it.
func (v *Volume) Sized() string {
	if v.sized == "" {
		return ""
	}
	return fmt.Sprintf("%s: the store has %s, %s", v.Name, words.Size(v.Store.Size), v.sized)
}
