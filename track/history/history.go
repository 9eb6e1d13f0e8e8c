// Package history keeps what changed in the epochs of a tracker, for as long as an owner
// has a mark that needs it.
//
// For most uses, take a backend of package track, which has its history itself. This
// package is for writing a backend whose kernel side gives out the changes of one
// epoch at a time: fill in a [History], register a [Reader] while marks may be held
// that no lease names, call Update with the leases to keep, and Changes to ask.
//
// # Epochs and files
//
// Epochs are numbered from 1; a mark names the beginning of one. An epoch that has
// ended stays with the backend ([Pinned]) until Update has written it as a file of
// package format/epochs. Files between which no mark is kept are merged, and files
// that no lease and no reader reaches back to are dropped. The folder of a History:
//
//	history            the lock of the files below
//	leases.json        whose marks are kept
//	reader-<random>    an open tracker: locked while it lives
//	<from>-<to>.changes
//
// Nothing is synced. A reboot must end the generation: the backend sees to that.
//
// A History may be used by several goroutines and several processes; methods that
// change files say which lock they need.
package history

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

	"tidemark/extent"
	"tidemark/format/epochs"
	"tidemark/linux/atomicfile"
	"tidemark/track"
)

// ErrUnwritable says that the state of a tracker cannot be written: its folder is
// full, or read-only.
var ErrUnwritable = errors.New("the state of tracking cannot be written")

// Pinned is the closed epochs that the backend still holds.
type Pinned interface {
	// Epochs returns the numbers, ascending. The open epoch, and one that is
	// prepared, may be among them.
	Epochs() ([]uint64, error)
	// Load returns what changed in an epoch. The error wraps fs.ErrNotExist when
	// the backend does not hold it.
	Load(epoch uint64) (extent.Set, error)
	// Drop lets go of an epoch, which has become a file.
	Drop(epoch uint64) error
}

// History is the closed epochs of one generation of tracking of one disk.
type History struct {
	Dir         string // of this disk alone
	Generation  string // 16 hex digits
	Size        int64  // of the disk, bytes
	Granularity int64  // bytes in a block
	Pinned      Pinned
}

// Changes returns the union of the closed epochs [from, to). The error is a
// track.LostError when one of them is gone, or damaged.
//
// It takes no lock. A backend drops an epoch after its file is there, and a file is
// removed after the one that it was merged into is there: when neither is found, the
// second look finds what took its place.
func (h *History) Changes(from, to uint64) (extent.Set, error) {
	return h.twice(from, to, h.Pinned.Load)
}

// Check returns nil when Changes would succeed, without reading what the backend
// holds.
func (h *History) Check(from, to uint64) error {
	held, err := h.Pinned.Epochs()
	if err != nil {
		return err
	}
	_, err = h.twice(from, to, func(e uint64) (extent.Set, error) {
		if !slices.Contains(held, e) {
			return extent.Set{}, fs.ErrNotExist
		}
		return extent.Set{}, nil
	})
	return err
}

func (h *History) twice(from, to uint64, pinned func(uint64) (extent.Set, error)) (extent.Set, error) {
	set, err := h.gather(from, to, pinned)
	if errors.Is(err, fs.ErrNotExist) {
		set, err = h.gather(from, to, h.Pinned.Load)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return set, err
	}
	why := "nobody kept the mark"
	if ls, err := h.Leases(); err == nil && ls.Dropped[from] != "" {
		why = ls.Dropped[from]
	}
	return extent.Set{}, track.Lost("its history was dropped: %s", why)
}

func (h *History) gather(from, to uint64, pinned func(uint64) (extent.Set, error)) (extent.Set, error) {
	var out extent.Set
	for e := from; e < to; {
		set, next, err := h.epoch(e, pinned)
		if err != nil {
			return extent.Set{}, err
		}
		out, e = out.Union(set), next
	}
	return out, nil
}

// Oldest returns the first of the closed epochs before to of which all are known; to itself
// when there is none. The lock must be held.
func (h *History) Oldest(to uint64) (uint64, error) {
	all, err := spans(h.Dir)
	if err != nil {
		return 0, err
	}
	held, err := h.Pinned.Epochs()
	if err != nil {
		return 0, err
	}
	for _, e := range held {
		all = append(all, span{e, e + 1})
	}
	slices.SortFunc(all, func(a, b span) int { return cmp.Compare(b.to, a.to) })
	oldest := to
	for _, sp := range all {
		if sp.from < oldest && oldest <= sp.to {
			oldest = sp.from
		}
	}
	return oldest, nil
}

// Each calls f for what changed in the closed epochs [from, to), in order. The number is that of the
// epoch, or of the last of several that have become one. The errors are those of Changes and of f.
// The lock must be held.
func (h *History) Each(from, to uint64, f func(epoch uint64, set extent.Set) error) error {
	for e := from; e < to; {
		set, next, err := h.epoch(e, h.Pinned.Load)
		if err == nil {
			err = f(next-1, set)
		}
		if err != nil {
			return err
		}
		e = next
	}
	return nil
}

// epoch returns a set that contains the epoch, and the first epoch that it may not
// contain.
func (h *History) epoch(e uint64, pinned func(uint64) (extent.Set, error)) (extent.Set, uint64, error) {
	set, err := pinned(e)
	if !errors.Is(err, fs.ErrNotExist) {
		return set, e + 1, err
	}
	all, err := spans(h.Dir)
	if err != nil {
		return extent.Set{}, 0, err
	}
	for _, sp := range slices.Backward(all) { // the shortest that begins last
		if sp.from <= e && e < sp.to {
			set, err := h.load(sp)
			return set, sp.to, err
		}
	}
	return extent.Set{}, 0, fmt.Errorf("track: epoch %d: %w", e, fs.ErrNotExist)
}

// Update changes the leases, unless change is nil; writes the epochs before now, which
// is the open one, to files; and tidies these. The lock must be held.
func (h *History) Update(ctx context.Context, now uint64, change func(*Leases)) error {
	ls, err := h.Leases()
	if err != nil {
		return err
	}
	if change != nil {
		change(&ls)
		if err := h.save(ls); err != nil {
			return err
		}
	}
	if err := h.Persist(now); err != nil {
		return err
	}
	return h.compact(ctx, ls, now)
}

// Persist turns the epochs before now into files. The lock must be held.
func (h *History) Persist(now uint64) error {
	held, err := h.Pinned.Epochs()
	if err != nil {
		return err
	}
	for _, e := range held {
		if e >= now {
			break
		}
		set, err := h.Pinned.Load(e)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = h.write(span{e, e + 1}, set)
		}
		if err == nil {
			err = h.Pinned.Drop(e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// compact drops the files that no lease and no reader reaches back to, and merges
// those between which no mark is kept. Epochs that began while a reader was there are
// left alone: it may hold marks that no lease names.
func (h *History) compact(ctx context.Context, ls Leases, now uint64) error {
	limit, err := oldestReader(h.Dir, now)
	if err != nil {
		return err
	}
	bounds := ls.boundaries()
	all, err := spans(h.Dir)
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
			if err := os.Remove(sp.file(h.Dir)); err != nil {
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
		if err := h.merge(parts); err != nil {
			return err
		}
	}
	return nil
}

// merge makes one file of each run of adjoining or overlapping ones. A crash leaves
// the parts beside the whole, which Changes tolerates and the next merge ends.
func (h *History) merge(parts []span) error {
	for len(parts) > 1 {
		whole, n := parts[0], 1
		for n < len(parts) && parts[n].from <= whole.to {
			whole.to = max(whole.to, parts[n].to)
			n++
		}
		if err := h.mergeRun(whole, parts[:n]); err != nil {
			return err
		}
		parts = parts[n:]
	}
	return nil
}

func (h *History) mergeRun(whole span, parts []span) error {
	if len(parts) < 2 {
		return nil
	}
	var set extent.Set
	for _, sp := range parts {
		one, err := h.load(sp)
		if errors.Is(err, track.ErrMarkLost) {
			return nil // left as it is: Changes tells the reason
		}
		if err != nil {
			return err
		}
		set = set.Union(one)
	}
	if err := h.write(whole, set); err != nil {
		return err
	}
	for _, sp := range parts {
		if sp == whole {
			continue
		}
		if err := os.Remove(sp.file(h.Dir)); err != nil {
			return fmt.Errorf("track: merge history: %w", err)
		}
	}
	return nil
}

// load reads one file. The error wraps fs.ErrNotExist, or is a track.LostError when
// the file is not what its name says.
func (h *History) load(sp span) (extent.Set, error) {
	f, err := os.Open(sp.file(h.Dir))
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
		return extent.Set{}, track.Lost("the history of epochs %d to %d is unreadable: %v", sp.from, sp.to, err)
	case err != nil:
		return extent.Set{}, fmt.Errorf("track: history: %s: %w", f.Name(), err)
	case c.Generation != h.Generation || c.From != sp.from || c.To != sp.to || c.DiskSize != h.Size || c.Granularity != h.Granularity:
		return extent.Set{}, track.Lost("the history of epochs %d to %d belongs to something else", sp.from, sp.to)
	}
	return c.Set, nil
}

func (h *History) write(sp span, set extent.Set) error {
	err := atomicfile.Write(sp.file(h.Dir), atomicfile.Options{Mode: 0o600}, func(f *os.File) error {
		return epochs.Encode(f, epochs.File{
			Generation: h.Generation, From: sp.from, To: sp.to,
			DiskSize: h.Size, Granularity: h.Granularity, Set: set,
		})
	})
	return Unwritable(err)
}

// Unwritable wraps an error of writing a tracker's state; nil stays nil.
func Unwritable(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("track: %w: %w", ErrUnwritable, err)
}

// Remove deletes files and leases of any generation in a folder, which need not be
// there. The lock must be held, and stays.
func Remove(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("track: list history: %w", err)
	}
	for _, e := range entries {
		if _, ok := parseSpan(e.Name()); !ok && e.Name() != leasesFile {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return Unwritable(err)
		}
	}
	return nil
}

const setSuffix = ".changes"

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
