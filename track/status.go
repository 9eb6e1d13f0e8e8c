package track

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"tidemark/block"
	"tidemark/linux/bpf"
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
	Misses      uint64       `json:"misses"`      // events the kernel skipped since the programs were installed, on any disk
	Memory      int64        `json:"memory"`      // bytes of kernel memory
	Lost        string       `json:"lost"`        // why all marks are lost; empty: they are not
	Marks       []MarkStatus `json:"marks"`       // by owner
}

// MarkStatus tells of one mark that is kept.
type MarkStatus struct {
	Owner string    `json:"owner"`
	Mark  Mark      `json:"mark"`
	Time  time.Time `json:"time"`
}

// List tells of every tracked disk, by name. Nothing tracked is no error.
func List(ctx context.Context, opts Options) ([]Status, error) {
	pl := opts.place()
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
	slices.SortFunc(all, func(a, b Status) int { return compareNames(a.Disk, b.Disk) })
	return all, nil
}

// compareNames sorts loop2 before loop10.
func compareNames(a, b string) int {
	if len(a) != len(b) {
		return len(a) - len(b)
	}
	if a < b {
		return -1
	}
	return 1
}

func status(ctx context.Context, pl place, r record) (Status, error) {
	st := Status{Disk: r.Disk, Generation: r.Generation, Since: r.Since, Size: r.Size, Granularity: r.Granularity, Marks: []MarkStatus{}}
	dir := pl.disk(r.Disk)
	ls, err := loadLeases(dir)
	switch {
	case errors.Is(err, errDamagedState):
		st.Lost = "the list of kept marks was damaged"
	case err != nil:
		return st, err
	}
	for _, o := range slices.Sorted(maps.Keys(ls.Owners)) {
		st.Marks = append(st.Marks, MarkStatus{Owner: o, Mark: ls.Owners[o].Mark, Time: ls.Owners[o].Time})
	}
	fac, err := bpf.Load(pl.pins)
	if errors.Is(err, bpf.ErrNotInstalled) || errors.Is(err, bpf.ErrBroken) {
		st.Lost = detached
		return st, nil
	}
	if err != nil {
		return st, err
	}
	s := &session{pl: pl, dir: dir, rec: r, fac: fac}
	defer s.close()
	l := &Live{source: "/dev/" + strings.ReplaceAll(r.Disk, "!", "/"), s: s}
	return st, st.measure(ctx, l)
}

// measure fills in what the kernel knows.
func (st *Status) measure(ctx context.Context, l *Live) error {
	l.slice.Len = l.s.rec.Size
	h, err := l.now(ctx)
	if lost := (*LostError)(nil); errors.As(err, &lost) {
		st.Lost = lost.Reason
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, block.ErrNotBlockDevice) {
		st.Lost = "the device is gone"
		return nil
	}
	if err != nil {
		return err
	}
	st.Epoch = h.Epoch
	m, err := l.s.fac.Misses()
	if err != nil {
		return err
	}
	st.Misses = m.Queue + m.Complete
	epochs, err := l.s.epochs()
	if err != nil {
		return err
	}
	for _, e := range epochs {
		if err := st.addBitmap(l.s, e); err != nil {
			return err
		}
	}
	return nil
}

func (st *Status) addBitmap(s *session, epoch uint64) error {
	b, err := s.open(epoch)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer b.Close()
	st.Memory += b.Memory()
	if epoch != st.Epoch {
		return nil
	}
	set, err := b.Set(s.rec.Granularity, s.rec.Size)
	st.Changed = set.Bytes()
	return err
}

// ErrNotTracked says that tracking is not on for a device.
var ErrNotTracked = errors.New("not tracked")

// Stop ends the tracking of the disk that the device is, or is a part of; all
// its marks are lost. When it was the last disk, the programs are removed. A
// disk that is gone can be named as it was. The error wraps ErrNotTracked when
// it was not tracked.
func Stop(ctx context.Context, device string, opts Options) error {
	pl := opts.place()
	id, err := block.Identify(device)
	if errors.Is(err, fs.ErrNotExist) {
		id, err = identifyGone(pl, device)
	}
	if err != nil {
		return err
	}
	dir := pl.disk(id.Disk)
	if _, err := os.Stat(filepath.Join(dir, recordFile)); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("track: stop: %s: %w", device, ErrNotTracked)
	}
	for _, path := range []string{pl.lockFile(), filepath.Join(dir, historyLock), filepath.Join(dir, flipLock)} {
		lock, err := lockPath(ctx, path)
		if err != nil {
			return err
		}
		defer lock.unlock()
	}
	return stop(pl, dir, id)
}

// identifyGone finds the record of a disk that is no longer there.
func identifyGone(pl place, device string) (block.Identity, error) {
	name := strings.ReplaceAll(strings.TrimPrefix(device, "/dev/"), "/", "!")
	recs, err := records(pl)
	if err != nil {
		return block.Identity{}, err
	}
	for _, r := range recs {
		if r.Disk == name {
			return block.Identity{Disk: r.Disk, DiskMajor: r.Major, DiskMinor: r.Minor}, nil
		}
	}
	return block.Identity{}, fmt.Errorf("track: stop: %s: no such device, and %w", device, ErrNotTracked)
}

func stop(pl place, dir string, id block.Identity) error {
	fac, err := bpf.Load(pl.pins)
	switch {
	case errors.Is(err, bpf.ErrNotInstalled), errors.Is(err, bpf.ErrBroken):
		return errors.Join(os.Remove(filepath.Join(dir, recordFile)), removeHistory(dir), bpf.Remove(pl.pins))
	case err != nil:
		return err
	}
	defer fac.Close()
	s := &session{pl: pl, dir: dir, fac: fac}
	if err := s.forget(id); err != nil {
		return err
	}
	disks, err := fac.Disks()
	if err != nil || len(disks) > 0 {
		return err
	}
	return bpf.Remove(pl.pins)
}
