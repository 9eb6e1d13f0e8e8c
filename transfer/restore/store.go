package restore

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/time/rate"

	"tidemark/extent"
	"tidemark/format/state"
	"tidemark/format/sums"
	"tidemark/transfer"
	"tidemark/transfer/transaction"
)

// RecordFile is the file of a folder that says that a target is being restored, and how
// far that came. It has the format of package state: its ID and Update are those of the
// copy, Source is what the copy is of, Target how the target looked when a run stopped.
const RecordFile = "restore"

// blobStart begins what a journal says of its owner.
const blobStart = "tidemark restore\n"

var (
	// ErrDamaged says that blocks of the copy are not what their checksums say.
	ErrDamaged = errors.New("the copy is not what its checksums say")
	// ErrPending says that a restore was committed and has not reached the target yet.
	ErrPending = errors.New("the restore is committed, and has not reached the target yet")
)

// kept is the copy that is restored.
type kept struct {
	Image transfer.Source
	// State is what is known of the image. Of one of which nothing is known only Size and
	// BlockSize are set.
	State state.State
	// Sums tell what the blocks should be, nil where nothing does.
	Sums interface {
		sums.Sparse
		// Wrong returns the blocks of e that are otherwise when data is their content; nil
		// stands for zeros.
		Wrong(e extent.Extent, data []byte) ([]extent.Extent, error)
	}
	// Sealed says that what is read of the image was held against that already.
	Sealed bool
	// Unchecked has blocks restored as they are; what cannot be read becomes zeros.
	Unchecked bool
}

// whole is all of the copy.
func (c kept) whole() extent.Set { return extent.NewSet(extent.Extent{Len: c.State.Size}) }

// store is an open target with the folder beside it.
type store struct {
	// Progress, if not nil, is told of bytes that are done. It is called by one goroutine
	// at a time.
	Progress func(bytes int64)
	// Holds, if not nil, is told what the target holds in the end, but for zeros: of the
	// places that were compared or written to. Several goroutines call it.
	Holds func(e extent.Extent, data []byte)
	// Limit, if not nil, bounds the bytes of the copy that are read each second.
	Limit *rate.Limiter

	copy      kept
	target    transaction.Target
	folder    transaction.Folder
	record    state.State // of the restore that was cut off, then of ours
	exists    bool        // there is a record
	empty     bool        // the target is an image that is emptied first
	stretch   int64       // bytes that are written between two syncs
	cached    bool        // writes go through the page cache
	recovered transaction.Done
	tally
}

// openStore opens a target for a copy, and first finishes a restore that was committed. With
// overwrite anything else that waits for the target is forgotten; without, the error wraps
// one of transaction.Recover.
func openStore(target transaction.Target, folder transaction.Folder, c kept, overwrite bool) (_ *store, err error) {
	defer explain(&err)
	s := &store{copy: c, target: target, folder: folder, stretch: stretchBytes}
	s.recovered, err = transaction.Recover(target, folder, transaction.FinishSame, transaction.Steps{
		Check: func(_ int64, blob []byte) (bool, error) {
			if !bytes.HasPrefix(blob, []byte(blobStart)) {
				return false, transaction.ErrOtherOwner
			}
			return false, nil
		},
	})
	if err != nil && overwrite {
		s.recovered, err = transaction.Recover(target, folder, transaction.Discard, transaction.Steps{})
	}
	if err == nil {
		err = s.load()
	}
	return s, err
}

// explain says in an error what failed.
func explain(err *error) {
	if *err != nil {
		*err = fmt.Errorf("restore: %w", *err)
	}
}

// Recovered tells in words what openStore found to finish or discard, "" if nothing.
func (s *store) Recovered() string { return string(s.recovered) }

// Empty has Write empty an image first, so that zeros need not be written.
func (s *store) Empty() { s.empty = true }

// Resumes reports whether a restore of this very copy was cut off, how many bytes from the
// start it has made durable, and why these may hold something else by now, "" when there is
// no sign of it.
func (s *store) Resumes() (copied int64, why string, ok bool) {
	r, c := s.record, s.copy.State
	if !s.exists || s.copy.Sums == nil || r.ID != c.ID || r.Update != c.Update || r.Size != c.Size {
		return 0, "", false
	}
	now, err := s.target.Stamp()
	if err != nil {
		return r.Copied, err.Error(), true
	}
	return r.Copied, transaction.Stamp(r.Target).Differs(now), true
}

// Unfinished reports, without locking it, whether the folder at path says that its target
// is between what it was and a copy. The record is that of the restore, Complete where it
// is committed and only has to be finished.
func Unfinished(path string) (record state.State, is bool, err error) {
	if record, is, err = recordIn(path); is || err != nil {
		return record, is, err
	}
	blob, _, err := transaction.Waiting(path)
	if err != nil || !bytes.HasPrefix(blob, []byte(blobStart)) {
		return record, false, err
	}
	record, err = state.Decode(blob[len(blobStart):])
	record.Complete = true
	return record, true, err
}

func recordIn(path string) (record state.State, is bool, err error) {
	f, err := os.Open(filepath.Join(path, RecordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return record, false, nil
	}
	if err != nil {
		return record, false, err
	}
	defer f.Close()
	record, err = state.Read(f)
	return record, true, err
}

// load reads the record. One that cannot be understood says that something was cut off, and
// nothing more.
func (s *store) load() error {
	f, err := s.folder.Open(RecordFile, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if s.record, err = state.Read(f); err != nil {
		s.record = state.State{}
	}
	s.exists = true
	return nil
}

// save replaces the record in one step.
func (s *store) save(next state.State) error {
	b, err := next.Encode()
	if err != nil {
		return err
	}
	if err := transaction.Replace(s.folder, RecordFile, b); err != nil {
		return err
	}
	s.record, s.exists = next, true
	return nil
}

// begin is the record of a restore of which copied bytes are done.
func (s *store) begin(copied int64) state.State {
	c := s.copy.State
	return state.State{ID: c.ID, Update: c.Update, Size: c.Size, BlockSize: c.BlockSize, Source: c.Source, Time: c.Time, Copied: copied}
}

// End says that the target is the copy, and whatever else was to be done to it is done:
// nothing is left in the folder that tells of it.
func (s *store) End() (err error) {
	defer explain(&err)
	return Forget(s.folder)
}

// Unfinished reports whether a restore in place was cut off.
func (s *store) Unfinished() bool { return s.exists }

// abandon has the target of a restore that was cut off, or is committed, count as what it
// is.
func abandon(folder transaction.Folder) (err error) {
	defer explain(&err)
	if _, err := transaction.Recover(nil, folder, transaction.Discard, transaction.Steps{}); err != nil {
		return err
	}
	return Forget(folder)
}

// Forget removes the record of a restore that was cut off.
func Forget(folder transaction.Folder) error {
	for _, name := range []string{RecordFile + transaction.NewEnd, RecordFile} {
		if err := folder.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return folder.Sync()
}
