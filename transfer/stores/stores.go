// Package stores applies what a dm-snapshot keeps in its store to the snapshot's origin, with
// neither in use and without device-mapper.
//
// For most uses, Open the store by its path, and Plan or Apply it to the origin. Extract makes
// an image of what the snapshot's device would read as.
//
// The package is to package merge what paths are to files: it opens both, holds all of the
// store against the rules of its format (package snapstore) and against the size of the origin,
// and refuses a store or an origin that the kernel or a program uses. Nothing has been written
// when it refuses. It asks nothing of LVM; package linux/lvm does. Functions on different
// origins may run at the same time.
//
// # What applying means
//
// A store holds one of two things. Where the snapshot was written to, it has what was written:
// applying it to the origin commits that. Where the origin was written to, it has what was
// there before: applying it rolls the origin back to the moment of the snapshot. Where both
// were, it has both, and the origin becomes what the snapshot reads as.
package stores

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/format/snapstore"
	"tidemark/linux/atomicfile"
	"tidemark/linux/dmsnap"
	"tidemark/transfer/inuse"
	"tidemark/transfer/merge"
	"tidemark/transfer/target"
)

var (
	// ErrSame refuses an origin that the store lies on, or that is the store.
	ErrSame = fmt.Errorf("%w: the store lies on it", target.ErrRefused)
	// ErrCutOff says that an origin is neither old nor new, until the same store is applied
	// again, or what was kept of it.
	ErrCutOff = errors.New("it is partly written, and neither what it was nor what it is to be")
	// ErrUndo refuses a file for what is overwritten.
	ErrUndo = fmt.Errorf("%w: it cannot keep what is overwritten", target.ErrRefused)
	// ErrDirect refuses an origin that cannot be written to past the page cache.
	ErrDirect = fmt.Errorf("%w: it cannot be written to past the page cache", target.ErrRefused)

	errEmpty = fmt.Errorf("origin: %w: it is empty, and the store is none of it", target.ErrRefused)
)

// Store is an open store.
type Store struct {
	*snapstore.Store
	device *block.Device
}

// Open opens the store at path, a block device or a file. The errors are those of package
// snapstore. The store of a live snapshot may be looked at: it is read past the page cache.
func Open(path string) (*Store, error) {
	d, err := block.Open(path, block.Options{Direct: true})
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	s, err := snapstore.Open(d, d.Size())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("store: %s: %w", path, err), d.Close())
	}
	return &Store{Store: s, device: d}, nil
}

// Path returns the path that the store was opened by.
func (s *Store) Path() string { return s.device.Path() }

// Close closes the store.
func (s *Store) Close() error { return s.device.Close() }

// OriginSize returns the size in bytes of the device or image at path, which is not empty.
func OriginSize(path string) (int64, error) {
	d, err := block.Open(path, block.Options{})
	if err != nil {
		return 0, fmt.Errorf("origin: %w", err)
	}
	if d.Size() == 0 {
		err = errEmpty
	}
	return d.Size(), errors.Join(err, d.Close())
}

// Pieces returns what belongs where in an origin of that size, in bytes.
func (s *Store) Pieces(origin int64) iter.Seq2[merge.Piece, error] {
	return func(yield func(merge.Piece, error) bool) {
		for e, err := range s.Exceptions() {
			if err != nil {
				yield(merge.Piece{}, err)
				return
			}
			from, to := int64(e.New)*s.ChunkSize(), int64(e.Old)*s.ChunkSize()
			if !yield(merge.Piece{From: from, To: to, Len: min(s.ChunkSize(), origin-to)}, nil) {
				return
			}
		}
	}
}

// Options say how to apply. The zero value works.
type Options struct {
	StateDir string // target.DefaultStateDir when empty
	// Journal makes the origin old or new, whatever crashes; it takes as much room as the
	// store has data.
	Journal bool
	// Direct writes past the page cache, as is done to a device without it where extents are
	// long.
	Direct bool
	// Undo names a file, which must not exist, that becomes a store of what is overwritten:
	// applied in its turn it brings that back.
	Undo string
	// Begin, if not nil, is called when all was read and judged, before the first byte is
	// written. Its error ends Apply.
	Begin func() error
	// Live has Plan look at a store and an origin that are in use.
	Live bool
	// Progress, if not nil, is told of the bytes that are done of how many in a phase. It
	// is called by one goroutine at a time.
	Progress func(phase string, done, total int64)
	// Note, if not nil, is told what an earlier run had left to finish.
	Note func(text string)
}

func (o Options) progress(phase string, total int64) func(int64) {
	if o.Progress == nil {
		return nil
	}
	return func(done int64) { o.Progress(phase, done, total) }
}

// ready holds all of the store against its origin, and refuses a store that is in use.
func (s *Store) ready(origin int64) (snapstore.Summary, error) {
	if err := dmsnap.StoreUnused(s.Path()); err != nil {
		return snapstore.Summary{}, err
	}
	return s.Sound(origin)
}

// Sound returns what the store holds when it can be applied to an origin of that size, in
// bytes: it is valid, and has no faults.
func (s *Store) Sound(origin int64) (snapstore.Summary, error) {
	if origin == 0 {
		return snapstore.Summary{}, errEmpty
	}
	if err := s.Valid(); err != nil {
		return snapstore.Summary{}, fmt.Errorf("store: %s: %w", s.Path(), err)
	}
	sum, err := s.Check(snapstore.CheckOptions{OriginSize: origin})
	if err != nil {
		err = fmt.Errorf("store: %s: %w", s.Path(), err)
	}
	return sum, err
}

// judge refuses an origin that must not be written to.
func (s *Store) judge(origin, stateDir string) error {
	if _, err := os.Stat(origin); err != nil {
		return fmt.Errorf("origin: %w", err)
	}
	if same, err := inuse.Reaches(origin, s.device); err != nil || same {
		return errors.Join(err, fmt.Errorf("%s: %w", origin, ErrSame))
	}
	if err := dmsnap.OriginUnused(origin); err != nil {
		return err
	}
	return merge.Judge(origin, stateDir)
}

// bytes is what the pieces add up to.
func bytes(s *Store, sum snapstore.Summary, origin int64) int64 {
	return sum.Exceptions*s.ChunkSize() - max(sum.End-origin, 0)
}

// Plan judges as Apply does and tells how much would be brought to the origin, and how much
// of it is equal already. It writes nothing.
func (s *Store) Plan(ctx context.Context, origin string, o Options) (merge.Report, error) {
	if !o.Live {
		if err := errors.Join(s.judge(origin, o.StateDir), dmsnap.StoreUnused(s.Path())); err != nil {
			return merge.Report{}, err
		}
	}
	d, err := block.Open(origin, block.Options{Direct: true})
	if err != nil {
		return merge.Report{}, fmt.Errorf("origin: %w", err)
	}
	defer d.Close()
	sum, err := s.Sound(d.Size())
	if err != nil {
		return merge.Report{}, err
	}
	return s.job(d.Size(), sum, "comparing", o).Compare(ctx, d)
}

func (s *Store) job(origin int64, sum snapstore.Summary, phase string, o Options) merge.Job {
	return merge.Job{
		From: s.device, Pieces: s.Pieces(origin),
		Progress: o.progress(phase, bytes(s, sum, origin)),
	}
}

// Apply brings what the store holds to its origin, the device or image at that path. All of
// the store was read, and held against the rules, before the first byte is written. When
// Apply was cut off, it has to be called again with the same store, unless o.Journal was
// set. The errors are those of packages snapstore, dmsnap, merge and transaction.
func (s *Store) Apply(ctx context.Context, origin string, o Options) (rep merge.Report, err error) {
	if err := s.judge(origin, o.StateDir); err != nil {
		return rep, err
	}
	to, err := merge.Open(origin, o.StateDir)
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	if to.Recovered != "" && o.Note != nil {
		o.Note(to.Recovered)
	}
	size := to.Device().Size()
	sum, err := s.ready(size)
	if err != nil {
		return rep, err
	}
	if sector := to.Device().SectorSize(); o.Direct && s.ChunkSize()%int64(sector) != 0 {
		return rep, fmt.Errorf("%s: %w: it takes multiples of %d bytes, and chunks have %d", origin, ErrDirect, sector, s.ChunkSize())
	}
	if o.Undo != "" {
		if err := s.keep(ctx, to.Device(), sum, o); err != nil {
			return rep, err
		}
	}
	if o.Begin != nil {
		if err := o.Begin(); err != nil {
			return rep, err
		}
	}
	job := s.job(size, sum, "applying", o)
	if o.Journal {
		return to.Commit(ctx, job)
	}
	rep, err = to.Write(ctx, job, o.Direct || s.suitsDirect(to, sum))
	if errors.Is(err, unix.EINVAL) && !o.Direct { // the device wants larger multiples: all of it again
		rep, err = to.Write(ctx, job, false)
	}
	if err != nil && rep.Bytes > 0 {
		err = fmt.Errorf("%s: %w: %w", origin, ErrCutOff, err)
	}
	return rep, err
}

// leastDirect is how long extents are on average for writes to go past the page cache by
// themselves, in bytes: the kernel sorts and joins shorter ones.
const leastDirect = 64 << 10

// suitsDirect reports whether writes past the page cache are quicker, and can be expected to be
// possible.
func (s *Store) suitsDirect(to *merge.Target, sum snapstore.Summary) bool {
	const page = 4096
	return to.Device().IsDevice() && s.ChunkSize()%page == 0 && to.Device().Size()%page == 0 &&
		sum.Exceptions*s.ChunkSize() >= leastDirect*sum.Extents
}

// keep makes a store of what the origin has where the store has chunks. Until it is whole and
// durable it is none, and nothing has been overwritten.
func (s *Store) keep(ctx context.Context, origin *block.Device, sum snapstore.Summary, o Options) (err error) {
	f, err := os.OpenFile(o.Undo, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return undoExists(o.Undo)
	}
	if err != nil {
		return fmt.Errorf("undo: %w", err)
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, os.Remove(o.Undo))
		}
	}()
	size := snapstore.SizeFor(sum.Exceptions, s.ChunkSize())
	if err := f.Truncate(size); err != nil {
		return fmt.Errorf("undo: %w", err)
	}
	w, err := snapstore.NewWriter(f, size, s.ChunkSize())
	if err != nil {
		return fmt.Errorf("undo: %w", err)
	}
	if err := s.copyOld(ctx, origin, w, o.progress("keeping what is overwritten", bytes(s, sum, origin.Size()))); err != nil {
		return fmt.Errorf("undo: %s: %w", o.Undo, err)
	}
	if err := w.End(f.Sync); err != nil {
		return fmt.Errorf("undo: %s: %w", o.Undo, err)
	}
	return atomicfile.SyncDir(filepath.Dir(o.Undo))
}

// undoExists refuses a file for what is overwritten, and says what it is if a run that was cut
// off has left it.
func undoExists(path string) error {
	left, err := Open(path)
	switch {
	case errors.Is(err, snapstore.ErrNotStore):
		return fmt.Errorf("%s: %w: it exists, and is no store. Where an apply that was cut off has left it, nothing had been written to the origin: remove it, and run again", path, ErrUndo)
	case err != nil:
		return fmt.Errorf("%s: %w: it exists: %v", path, ErrUndo, err)
	}
	err = fmt.Errorf("%s: %w: it exists. Where an apply that was cut off has left it, it has what to go back to: keep it, and run without undo to go on", path, ErrUndo)
	return errors.Join(err, left.Close())
}

func (s *Store) copyOld(ctx context.Context, origin *block.Device, w *snapstore.Writer, progress func(int64)) error {
	buf := block.AlignedBuffer(int(s.ChunkSize()))
	done := int64(0)
	for p, err := range s.Pieces(origin.Size()) {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if _, err := origin.ReadAt(buf[:p.Len], p.To); err != nil {
			return fmt.Errorf("origin at byte %d: %w", p.To, err)
		}
		if err := w.Add(uint64(p.To/s.ChunkSize()), buf[:p.Len]); err != nil {
			return err
		}
		if done += p.Len; progress != nil {
			progress(done)
		}
	}
	return nil
}

// Extract makes the image at path, which must not exist, of what the snapshot's device would
// read as. The origin must not change meanwhile; neither it nor the store is written to.
func (s *Store) Extract(ctx context.Context, origin, path string, o Options) (merge.Report, error) {
	if err := inuse.Changing(origin); err != nil {
		return merge.Report{}, err
	}
	d, err := block.Open(origin, block.Options{Direct: true})
	if err != nil {
		return merge.Report{}, fmt.Errorf("origin: %w", err)
	}
	defer d.Close()
	sum, err := s.ready(d.Size())
	if err != nil {
		return merge.Report{}, err
	}
	job := s.job(d.Size(), sum, "extracting", o)
	job.Progress = o.progress("extracting", d.Size()+bytes(s, sum, d.Size()))
	return job.Extract(ctx, d, path)
}
