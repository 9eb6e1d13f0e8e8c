package track

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"tidemark/extent"
	"tidemark/format/epochs"
	"tidemark/linux/bpf"
)

const (
	flipLock     = "flip"
	historyLock  = "history"
	setSuffix    = ".changes"
	readerPrefix = "reader-"
)

// span is the epochs [from, to) of one file.
type span struct{ from, to uint64 }

func (s span) file(dir string) string {
	return filepath.Join(dir, fmt.Sprintf("%d-%d%s", s.from, s.to, setSuffix))
}

func parseSpan(name string) (span, bool) {
	body, ok := strings.CutSuffix(name, setSuffix)
	if !ok {
		return span{}, false
	}
	a, b, _ := strings.Cut(body, "-")
	from, err1 := strconv.ParseUint(a, 10, 64)
	to, err2 := strconv.ParseUint(b, 10, 64)
	return span{from, to}, err1 == nil && err2 == nil && from < to
}

// spans returns the files of the history, by beginning, longest first.
func spans(dir string) ([]span, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("track: list history: %w", err)
	}
	var all []span
	for _, e := range entries {
		if s, ok := parseSpan(e.Name()); ok {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b span) int {
		return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(b.to, a.to))
	})
	return all, nil
}

// loadSpan reads one file of the history. The error wraps fs.ErrNotExist, or is
// a LostError when the file is not what its name says.
func (s *session) loadSpan(sp span) (extent.Set, error) {
	f, err := os.Open(sp.file(s.dir))
	if err != nil {
		return extent.Set{}, fmt.Errorf("track: history: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return extent.Set{}, fmt.Errorf("track: history: %w", err)
	}
	c, err := epochs.Decode(f, st.Size())
	switch {
	case errors.Is(err, epochs.ErrDamaged), errors.Is(err, epochs.ErrNotEpochs), errors.Is(err, epochs.ErrNewer):
		return extent.Set{}, &LostError{Reason: fmt.Sprintf("the history of epochs %d to %d is unreadable: %v", sp.from, sp.to, err)}
	case err != nil:
		return extent.Set{}, fmt.Errorf("track: history: %s: %w", f.Name(), err)
	case c.Generation != s.rec.Generation || c.From != sp.from || c.To != sp.to ||
		c.DiskSize != s.rec.Size || c.Granularity != s.rec.Granularity:
		return extent.Set{}, &LostError{Reason: fmt.Sprintf("the history of epochs %d to %d belongs to something else", sp.from, sp.to)}
	}
	return c.Set, nil
}

// saveSpan writes one file of the history.
func (s *session) saveSpan(sp span, set extent.Set) error {
	return writeFile(sp.file(s.dir), func(f *os.File) error {
		return epochs.Encode(f, epochs.File{
			Generation: s.rec.Generation, From: sp.from, To: sp.to,
			DiskSize: s.rec.Size, Granularity: s.rec.Granularity, Set: set,
		})
	})
}

// gather returns the union of the closed epochs [from, to), each from its
// bitmap while that is pinned, else from a file. It takes no lock: a bitmap is
// unpinned after its file is there, and a file is removed after the one it was
// merged into is there, so whoever finds neither looks once more.
func (s *session) gather(from, to uint64) (extent.Set, error) {
	set, err := s.tryGather(from, to)
	if errors.Is(err, fs.ErrNotExist) {
		set, err = s.tryGather(from, to)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return extent.Set{}, &LostError{Reason: "its history was dropped, because no one kept the mark"}
	}
	return set, err
}

func (s *session) tryGather(from, to uint64) (extent.Set, error) {
	var out extent.Set
	for e := from; e < to; {
		set, next, err := s.tryEpoch(e)
		if err != nil {
			return extent.Set{}, err
		}
		out = out.Union(set)
		e = next
	}
	return out, nil
}

// tryEpoch returns a set that contains the epoch, and the first epoch that it
// may not contain.
func (s *session) tryEpoch(e uint64) (extent.Set, uint64, error) {
	b, err := s.open(e)
	if err == nil {
		set, err := b.Set(s.rec.Granularity, s.rec.Size)
		return set, e + 1, errors.Join(err, b.Close())
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return extent.Set{}, 0, err
	}
	all, err := spans(s.dir)
	if err != nil {
		return extent.Set{}, 0, err
	}
	for _, sp := range slices.Backward(all) { // the shortest that begins last
		if sp.from <= e && e < sp.to {
			set, err := s.loadSpan(sp)
			return set, sp.to, err
		}
	}
	return extent.Set{}, 0, fmt.Errorf("track: epoch %d: %w", e, fs.ErrNotExist)
}

// persist turns the bitmaps of the epochs before now into files. The history
// lock must be held.
func (s *session) persist(now uint64) error {
	epochs, err := s.epochs()
	if err != nil {
		return err
	}
	for _, e := range epochs {
		if e >= now {
			break
		}
		if err := s.persistOne(e); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) persistOne(e uint64) error {
	b, err := s.open(e)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer b.Close()
	set, err := b.Set(s.rec.Granularity, s.rec.Size)
	if err != nil {
		return err
	}
	if err := s.saveSpan(span{e, e + 1}, set); err != nil {
		return err
	}
	return bpf.Unpin(s.pl.pin(s.rec.Generation, e))
}

// compact drops the files that no lease and no open Live reaches back to, and
// merges those between which nobody has a mark. Epochs that began while an open
// Live was there are left alone: it may hold marks nobody else knows of. The
// history lock must be held.
func (s *session) compact(ctx context.Context, l leases, now uint64) error {
	limit, err := s.oldestReader(now)
	if err != nil {
		return err
	}
	bounds := l.boundaries()
	all, err := spans(s.dir)
	if err != nil {
		return err
	}
	groups := map[int][]span{}
	for _, sp := range all {
		if sp.to > limit {
			continue
		}
		after, _ := slices.BinarySearch(bounds, sp.to) // leases below the end
		if after == 0 {
			if err := os.Remove(sp.file(s.dir)); err != nil {
				return fmt.Errorf("track: drop history: %w", err)
			}
			continue
		}
		group, _ := slices.BinarySearch(bounds, sp.from+1) // leases not above the beginning
		groups[group] = append(groups[group], sp)
	}
	for _, parts := range groups {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.merge(parts); err != nil {
			return err
		}
	}
	return nil
}

// merge makes one file of each run of adjoining or overlapping ones. A crash
// leaves the parts beside the whole, which gather tolerates and the next merge
// ends.
func (s *session) merge(parts []span) error {
	for len(parts) > 1 {
		whole, n := parts[0], 1
		for n < len(parts) && parts[n].from <= whole.to {
			whole.to = max(whole.to, parts[n].to)
			n++
		}
		if err := s.mergeRun(whole, parts[:n]); err != nil {
			return err
		}
		parts = parts[n:]
	}
	return nil
}

func (s *session) mergeRun(whole span, parts []span) error {
	if len(parts) < 2 {
		return nil
	}
	var set extent.Set
	for _, sp := range parts {
		one, err := s.loadSpan(sp)
		if lost := (*LostError)(nil); errors.As(err, &lost) {
			return nil // left as it is, to say so when someone asks
		}
		if err != nil {
			return err
		}
		set = set.Union(one)
	}
	if err := s.saveSpan(whole, set); err != nil {
		return err
	}
	for _, sp := range parts {
		if sp == whole {
			continue
		}
		if err := os.Remove(sp.file(s.dir)); err != nil {
			return fmt.Errorf("track: merge history: %w", err)
		}
	}
	return nil
}

// removeHistory deletes files and leases of a disk; the locks stay.
func removeHistory(dir string) error {
	all, err := spans(dir)
	if err != nil {
		return err
	}
	names := []string{filepath.Join(dir, leasesFile)}
	for _, sp := range all {
		names = append(names, sp.file(dir))
	}
	for _, name := range names {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("track: remove history: %w", err)
		}
	}
	return nil
}

// newReader leaves a locked file that says that an open Live may hold marks
// from the given epoch on.
func newReader(dir string, epoch uint64) (*fileLock, error) {
	f, err := os.CreateTemp(dir, readerPrefix+"*")
	if err != nil {
		return nil, fmt.Errorf("track: %w", err)
	}
	_, err = fmt.Fprintf(f, "%d\n", epoch)
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("track: %s: %w", f.Name(), err), f.Close(), os.Remove(f.Name()))
	}
	return &fileLock{f: f}, nil
}

// oldestReader returns the first epoch that an open Live may hold a mark of,
// now when there is none. Files of processes that ended are removed.
func (s *session) oldestReader(now uint64) (uint64, error) {
	names, err := filepath.Glob(filepath.Join(s.dir, readerPrefix+"*"))
	if err != nil {
		return 0, fmt.Errorf("track: %w", err)
	}
	for _, name := range names {
		epoch, alive, err := readReader(name)
		if err != nil {
			return 0, err
		}
		if alive {
			now = min(now, epoch)
		}
	}
	return now, nil
}

func readReader(name string) (epoch uint64, alive bool, err error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("track: %w", err)
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, false, fmt.Errorf("track: %w", err)
		}
		return 0, false, nil
	}
	if _, err := fmt.Fscan(f, &epoch); err != nil {
		return 0, true, nil // unreadable: spare everything
	}
	return epoch, true, nil
}
