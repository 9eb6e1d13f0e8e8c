package transaction

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"tidemark/extent"
	"tidemark/format/redo"
)

// Txn is one change of a target. After an error every later method but Abort and
// Committed returns an error.
type Txn struct {
	target Target
	folder Folder
	seen   Stamp // how the target looked last, apart from our own writes
	sure   bool  // a write since then shows

	mu        sync.Mutex // guards what follows
	file      File
	journal   *redo.Writer
	sealed    *redo.Reader
	committed bool
	err       error // the first one
}

// Begin starts a change of target, about which it only remembers how the target looks
// now: Seal notices whoever writes to it meanwhile. The folder's journal is made when
// there is something to put into it. Recover must have been called before.
func Begin(ctx context.Context, target Target, folder Folder) (*Txn, error) {
	t := &Txn{target: target, folder: folder}
	var err error
	if t.seen, t.sure, err = Look(ctx, target, folder); err != nil {
		return nil, fmt.Errorf("transaction: begin: %w", err)
	}
	return t, nil
}

// Seen returns how the target looked at Begin or, after Seal, when it was sealed.
func (t *Txn) Seen() (looks Stamp, trusted bool) { return t.seen, t.sure }

// Data records that p comes to off (bytes) in the target. It may be called by several
// goroutines at once, for places that do not overlap within one pass: Seal refuses a
// journal where they do.
func (t *Txn) Data(off int64, p []byte) error {
	return t.record(func() error { return t.journal.Data(off, p) })
}

// Zero records that e becomes zeros; see Data.
func (t *Txn) Zero(e extent.Extent) error {
	return t.record(func() error { return t.journal.Zero(e) })
}

// NextPass ends a pass: what is recorded from now on holds in the place of what was
// recorded before. No Data or Zero may be under way.
func (t *Txn) NextPass() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.journal != nil {
		t.journal.NextPass()
	}
}

// Empty reports whether nothing has been recorded.
func (t *Txn) Empty() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.journal == nil
}

// Journaled returns how long the journal is, in bytes; 0 while there is none.
func (t *Txn) Journaled() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.journal == nil {
		return 0
	}
	return t.journal.Len()
}

func (t *Txn) record(f func() error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.open()
	if err == nil {
		err = f()
	}
	return t.failed("record", err)
}

// open makes the journal, once; t.mu is held.
func (t *Txn) open() error {
	if t.err != nil || t.journal != nil {
		return t.err
	}
	f, err := t.folder.Open(journalFile, true)
	if err != nil {
		return err
	}
	t.file, t.journal = f, redo.NewWriter(sparing{f, t.folder})
	return nil
}

// failed keeps the first error, and says what failed; t.mu is held.
func (t *Txn) failed(what string, err error) error {
	if err == nil {
		return nil
	}
	if t.err == nil {
		t.err = err
	}
	return fmt.Errorf("transaction: %s: %w", what, err)
}

// Seal makes the change, after which the target has after bytes, ready for Publish:
// durable in the journal, and with room for it in the target. blob, at most redo.MaxBlob
// bytes, is for the Steps of whoever finishes the change. The target is still the old
// one. The error wraps ErrChanged when somebody else wrote to the target since Begin.
func (t *Txn) Seal(ctx context.Context, after int64, blob []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.failed("seal", t.seal(ctx, after, blob))
}

func (t *Txn) seal(ctx context.Context, after int64, blob []byte) error {
	now, err := t.unmoved()
	if err != nil {
		return err
	}
	if err := t.open(); err != nil {
		return err
	}
	if err := t.journal.Seal(now.Size, after, blob); err != nil {
		return err
	}
	if t.sealed, err = redo.NewReader(t.file, t.journal.Len()); err != nil {
		// Not %w: what waits is not damaged, there is nothing that waits.
		return fmt.Errorf("the journal does not read back as it was written (does its disk lose writes?): %v", err)
	}
	if _, err = t.unmoved(); err != nil {
		return err
	}
	// Making room may change the target's times, but not its content. A write by another
	// program just then is not told from that.
	if err := reserve(t.target, t.sealed); err != nil {
		var serr error
		t.seen, t.sure, serr = Look(ctx, t.target, t.folder)
		return errors.Join(err, serr)
	}
	t.sure = false // until the clock has moved on, see below
	if t.seen, err = t.target.Stamp(); err != nil {
		return err
	}
	if err := t.journal.Bind(t.seen.digest()); err != nil {
		return err
	}
	if err := t.file.Sync(); err != nil {
		return err
	}
	// The clock may have moved on while the journal was synced: this seldom waits.
	now, t.sure, err = Look(ctx, t.target, t.folder)
	if err != nil {
		return err
	}
	if why := t.seen.moved(now); why != "" {
		return fmt.Errorf("%w: %s", ErrChanged, why)
	}
	return nil
}

// unmoved returns how the target looks, and an error wrapping ErrChanged when somebody else
// wrote to it since it was seen last.
func (t *Txn) unmoved() (Stamp, error) {
	now, err := t.target.Stamp()
	if err != nil {
		return now, err
	}
	if why := t.seen.moved(now); why != "" {
		return now, fmt.Errorf("%w: %s", ErrChanged, why)
	}
	return now, nil
}

// reserve makes sure that the target has room for the data of a journal: a full disk is
// noticed while the target is the old one.
func reserve(target Target, j *redo.Reader) error {
	var run extent.Extent
	flush := func() error {
		if run.Empty() {
			return nil
		}
		return target.Reserve(run)
	}
	err := j.Each(func(e redo.Entry) error {
		switch {
		case e.Zero():
			return nil
		case run.End() == e.Off:
			run.Len += e.Len
			return nil
		}
		err := flush()
		run = e.Extent
		return err
	})
	if err == nil {
		err = flush()
	}
	if err != nil {
		return fmt.Errorf("room in the target: %w", err)
	}
	return nil
}

// Publish commits the sealed change, in one step. After an error Committed says whether
// the change will be finished nevertheless.
func (t *Txn) Publish() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		return t.failed("commit", t.err)
	}
	if t.sealed == nil {
		return t.failed("commit", errors.New("it was not sealed"))
	}
	if err := t.folder.Rename(journalFile, ReadyFile); err != nil {
		return t.failed("commit", err)
	}
	t.committed = true
	return t.failed("commit", t.folder.Sync())
}

// Committed reports whether the change will be finished, if not by Finish then by
// Recover: a journal in its place is brought to the target even when its folder could
// not be synced.
func (t *Txn) Committed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.committed
}

// Finish brings the published change to the target and forgets the journal. The Steps get
// a stamp only when nobody else has written to the target between Seal and Finish. A write
// by another program while Finish writes cannot be told from its own.
func (t *Txn) Finish(ctx context.Context, steps Steps) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.failed("finish", t.finish(ctx, steps))
}

func (t *Txn) finish(ctx context.Context, steps Steps) error {
	switch {
	case t.err != nil:
		return t.err
	case !t.committed:
		return errors.New("it was not committed")
	}
	now, err := t.target.Stamp()
	if err != nil {
		return err
	}
	trusted := t.sure && t.seen.moved(now) == ""
	c := &carrier{target: t.target, folder: t.folder, file: t.file, journal: t.sealed, steps: steps}
	if err := c.carry(func() (Stamp, error) {
		looks, ok, err := Look(ctx, t.target, t.folder)
		if !ok || !trusted {
			looks = Stamp{}
		}
		return looks, err
	}); err != nil {
		return err
	}
	return t.close()
}

// close closes the journal; t.mu is held.
func (t *Txn) close() error {
	if t.file == nil {
		return nil
	}
	f := t.file
	t.file = nil
	return f.Close()
}

// Abort forgets a change that was not committed. Of one that was committed it closes the
// journal, for Recover to finish it.
func (t *Txn) Abort() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.file == nil {
		return nil
	}
	err := t.close()
	if !t.committed {
		if rerr := t.folder.Remove(journalFile); !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	t.err = errors.Join(t.err, errors.New("it was aborted"))
	if err != nil {
		return fmt.Errorf("transaction: abort: %w", err)
	}
	return nil
}
