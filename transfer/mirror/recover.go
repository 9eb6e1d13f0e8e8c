package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"

	"tidemark/format/sidecar"
)

// Pending reports whether a folder holds an update that was committed and that a
// crash kept from the target. Open finishes it.
func Pending(folder Folder) (bool, error) {
	f, err := folder.Open(readyFile, false)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, f.Close()
}

// PendingAfter reports, without opening or locking the folder at path, whether it
// holds a committed update that the state st does not count yet.
func PendingAfter(path string, st sidecar.State) (bool, error) {
	f, err := os.Open(filepath.Join(path, readyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	r, err := sidecar.NewJournalReader(f)
	if err != nil {
		return false, damaged(err)
	}
	return r.Update > st.Update, nil
}

// recover finishes or discards the update that a crash interrupted.
func (s *Store) recover() error {
	if err := s.finish(); err != nil {
		return err
	}
	err := s.folder.Remove(journalFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		s.recovered = "discarded an update that was not committed"
	}
	return err
}

func (s *Store) finish() error {
	f, err := s.folder.Open(readyFile, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	s.reread() // or the first sync would report what the last run has reported
	r, err := s.openJournal(f)
	if err != nil {
		return damaged(err)
	}
	if r.Update <= s.state.Update {
		return s.removeReady()
	}
	// All of it is read before any of it is written.
	if err := drain(r); err != nil {
		return damaged(err)
	}
	// The run may have ended before its rename was durable: a power cut after the
	// first write would bring back the name of a journal that nobody finishes.
	if err := s.folder.Sync(); err != nil {
		return err
	}
	// Nobody knows what happened to the target since the crash.
	if err := s.apply(f, finishedLater); err != nil {
		return err
	}
	s.recovered = "finished an update that was committed"
	return nil
}

// finishedLater has the history tell that the run did not end well; nor does it put a
// fingerprint into the state, so that the next run checks the target.
func finishedLater(next *sidecar.State) error {
	if n := len(next.Runs); n > 0 {
		next.Runs[n-1].Outcome = "pending: committed, and finished when the mirror was opened again"
	}
	return unstamped(next)
}

// damaged makes a committed journal that is cut short what it is: damaged.
func damaged(err error) error {
	if errors.Is(err, sidecar.ErrIncomplete) {
		return fmt.Errorf("%w: %w", sidecar.ErrDamaged, err)
	}
	return err
}

func (s *Store) openJournal(f File) (*sidecar.JournalReader, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	r, err := sidecar.NewJournalReader(io.NewSectionReader(f, 0, size))
	if err != nil {
		return nil, err
	}
	if r.ID != s.state.ID || r.BlockSize != s.state.BlockSize {
		return nil, fmt.Errorf("journal: of mirror %x, not %x: %w", r.ID, s.state.ID, sidecar.ErrNotOurs)
	}
	return r, nil
}

func drain(r *sidecar.JournalReader) error {
	for {
		if _, err := r.Next(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// apply writes a committed journal to the target, makes that durable, and then
// the state with the fingerprint that stamp puts in, and then forgets the journal.
// A crash in between is no harm: the journal is applied again.
func (s *Store) apply(f File, stamp func(*sidecar.State) error) error {
	r, err := s.openJournal(f)
	if err != nil {
		return err
	}
	if err := s.target.Resize(r.Size); err != nil {
		return err
	}
	if err := s.extendSums(r.Size); err != nil {
		return err
	}
	if err := s.applyRecords(r); err != nil {
		return err
	}
	if err := s.syncData(); err != nil {
		return err
	}
	next := r.State()
	next.Target = sidecar.Target{}
	if err := stamp(&next); err != nil {
		return err
	}
	if err := s.saveState(next); err != nil {
		return err
	}
	return s.removeReady()
}

// applyRecords writes all records in their order, while the next ones are read and
// checked.
func (s *Store) applyRecords(r *sidecar.JournalReader) error {
	group, ctx := errgroup.WithContext(context.Background())
	checked := make(chan []sidecar.Record, 1)
	group.Go(func() error {
		defer close(checked)
		return readRecords(ctx, r, checked)
	})
	group.Go(func() error {
		for records := range checked {
			for _, rec := range records {
				if err := s.applyRecord(rec, r.BlockSize); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return group.Wait()
}

const (
	// aheadBytes and aheadRecords bound what is read at a time before it is
	// written; one record may be longer.
	aheadBytes   = 1 << 20
	aheadRecords = 256
)

// readRecords sends all records of a journal, some at a time.
func readRecords(ctx context.Context, r *sidecar.JournalReader, to chan<- []sidecar.Record) error {
	for ended := false; !ended; {
		var some []sidecar.Record
		for bytes := 0; bytes < aheadBytes && len(some) < aheadRecords; {
			rec, err := r.Next()
			if ended = err == io.EOF; ended {
				break
			}
			if err != nil {
				return damaged(err)
			}
			rec.Data, rec.Sums = slices.Clone(rec.Data), slices.Clone(rec.Sums)
			some = append(some, rec)
			bytes += len(rec.Data)
		}
		select {
		case to <- some:
		case <-ctx.Done():
			return nil // the writer has the reason
		}
	}
	return nil
}

func (s *Store) applyRecord(rec sidecar.Record, blockSize int64) error {
	if rec.Data == nil {
		if err := s.target.Zero(rec.Extent); err != nil {
			return err
		}
		return s.writeZeroSums(rec.Off, sidecar.Blocks(rec.Len, blockSize))
	}
	if _, err := s.target.WriteAt(rec.Data, rec.Off); err != nil {
		return err
	}
	return s.sums.Write(rec.Sums, rec.Off)
}

// writeZeroSums is bounded in memory, however long the extent is.
func (s *Store) writeZeroSums(off, blocks int64) error {
	zero := make([]sidecar.Sum, min(blocks, 1<<16))
	for blocks > 0 {
		n := min(blocks, int64(len(zero)))
		if err := s.sums.Write(zero[:n], off); err != nil {
			return err
		}
		off += n * s.state.BlockSize
		blocks -= n
	}
	return nil
}

// extendSums makes the sums file as long as a target of size bytes needs, so that
// one that was cut short is told from one that ends with zeros.
func (s *Store) extendSums(size int64) error {
	now, err := s.sumsFile.Size()
	if err != nil || size == 0 || now >= s.sums.FileSize(size) {
		return err
	}
	return s.sums.Write([]sidecar.Sum{{}}, size-1)
}

// syncData makes target and sums durable; neither is trusted until a state that
// is saved afterwards says so. Once it has failed it fails for good: the kernel
// reports lost writes once, and a second sync that succeeds says nothing of them.
func (s *Store) syncData() error {
	if s.syncFailed == nil {
		s.syncFailed = s.target.Sync()
	}
	if s.syncFailed == nil {
		s.syncFailed = s.sumsFile.Sync()
	}
	return s.syncFailed
}

func (s *Store) removeReady() error {
	if err := s.folder.Remove(readyFile); err != nil {
		return err
	}
	return s.folder.Sync()
}
