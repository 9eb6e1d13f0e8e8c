package bpf

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"time"

	"tidemark/block"
	"tidemark/linux/bpf"
	"tidemark/linux/sysfs"
	"tidemark/track"
)

// Status tells how a disk is tracked.
type Status struct {
	Disk        string       `json:"disk"` // kernel name
	Generation  string       `json:"generation"`
	Since       time.Time    `json:"since"`
	Size        int64        `json:"size"`        // bytes
	Granularity int64        `json:"granularity"` // bytes
	Epoch       uint64       `json:"epoch"`       // the current one
	Changed     int64        `json:"changed"`     // bytes in the current epoch
	Misses      uint64       `json:"misses"`      // changes, and completions, that may not have been marked since the programs were installed, on any such disk
	Memory      int64        `json:"memory"`      // bytes of kernel memory
	Lost        string       `json:"lost"`        // why all marks are lost; empty: they are not
	Marks       []MarkStatus `json:"marks"`       // by owner
	// MergesUnseen: a snapshot that is merged into the disk, and has been by the next Cut, does not
	// show: this kernel cannot tell (see bpf.Facility.WatchSwaps).
	MergesUnseen bool `json:"merges_unseen,omitempty"`
	// LostAtReboot says why the next reboot will lose all marks; empty: it keeps them if it is clean.
	// List leaves it empty: what is done at a reboot is not this package's.
	LostAtReboot string `json:"lost_at_reboot,omitempty"`
}

// MarkStatus tells of one mark that is kept.
type MarkStatus struct {
	Owner string     `json:"owner"`
	Mark  track.Mark `json:"mark"`
	Time  time.Time  `json:"time"`
}

// List tells of every tracked disk, by name. Nothing tracked is no error.
func List(ctx context.Context, opts Options) ([]Status, error) {
	pl := opts.paths()
	recs, err := records(pl)
	if err != nil {
		return nil, err
	}
	all := []Status{}
	for _, r := range recs {
		st, err := status(ctx, pl, r)
		if err != nil {
			return nil, err
		}
		all = append(all, st)
	}
	slices.SortFunc(all, func(a, b Status) int { // loop2 before loop10
		return cmp.Or(cmp.Compare(len(a.Disk), len(b.Disk)), cmp.Compare(a.Disk, b.Disk))
	})
	return all, nil
}

func status(ctx context.Context, pl paths, r record) (Status, error) {
	st := Status{Disk: r.Disk, Generation: r.Generation, Since: r.Since, Size: r.Size, Granularity: r.Granularity, Marks: []MarkStatus{}, MergesUnseen: r.Mapping != "" && !r.Swaps}
	id, gone := block.IdentifyDev(sysfs.Dev{Major: r.Major, Minor: r.Minor})
	if errors.Is(gone, fs.ErrNotExist) {
		id = block.Identity{}
	} else if gone != nil {
		return st, gone
	}
	s := &session{pl: pl, source: id, rec: r}
	s.source.Disk = r.Disk
	ls, err := s.history().Leases()
	switch {
	case damaged(err):
		st.Lost = "the list of kept marks was damaged"
	case err != nil:
		return st, err
	}
	for _, o := range slices.Sorted(maps.Keys(ls.Owners)) {
		st.Marks = append(st.Marks, MarkStatus{Owner: o, Mark: ls.Owners[o].Mark, Time: ls.Owners[o].Time})
	}
	if gone != nil {
		st.Lost = "the device is gone"
		return st, nil
	}
	s.fac, err = bpf.Load(pl.pins)
	if errors.Is(err, bpf.ErrNotInstalled) || errors.Is(err, bpf.ErrBroken) {
		st.Lost = detached
		return st, nil
	}
	if err != nil {
		return st, err
	}
	return st, errors.Join(st.measure(ctx, s), s.close())
}

// measure fills in what the kernel knows.
func (st *Status) measure(ctx context.Context, s *session) error {
	cur, err := s.openNow(ctx)
	if lost := (*track.LostError)(nil); errors.As(err, &lost) {
		st.Lost = lost.Reason
		return nil
	}
	if err != nil {
		return err
	}
	defer cur.Close()
	st.Epoch = cur.Header().Epoch
	set, err := s.set(cur)
	if err != nil {
		return err
	}
	st.Changed = set.Bytes()
	m, err := s.fac.Misses(s.rec.BioBased)
	if err != nil {
		return err
	}
	st.Misses = m.Queue + m.Complete
	epochs, err := s.Epochs()
	for _, e := range epochs {
		b, err := s.open(e)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		st.Memory += b.Memory()
		b.Close()
	}
	return err
}
