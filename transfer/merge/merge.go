// Package merge brings pieces of one file to places of another: what a snapshot kept apart
// to its origin, what changed in a snapshot to an older image of it.
//
// For most uses, make a Job of the file that is read and the pieces, Open the Target, and
// call Write or Commit. Compare tells beforehand how much of it the target has already, and
// Extract makes a new image of what a target would be, leaving all else alone.
//
// The package knows no format: whoever makes a Job has checked that the pieces lie within
// both files and that no two have a place in common. It refuses a target that somebody
// uses, and one that is a mirror and would no longer be one.
//
// # Two ways
//
// Write writes in place. A target that is cut off in it is neither old nor new until the
// same pieces are written again: each comes from a file that does not change, so that it is
// no harm to write one twice. Commit goes through package transaction: the target is old or
// new, whatever crashes, and a journal as large as the pieces is needed for a while.
package merge

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/transfer/transaction"
)

// Piece is Len bytes at From of the file that is read, which belong at To of the target.
// All are bytes.
type Piece struct{ From, To, Len int64 }

const (
	workers   = 16      // that read and write at once
	loadBytes = 1 << 20 // what a worker reads before it writes
	batchSize = 1 << 16 // pieces that are brought into the order of the target together
	pageSize  = 4096    // what places past the page cache are multiples of, in bytes
)

// Job is what is brought to a target.
type Job struct {
	From io.ReaderAt
	// Pieces may be walked several times, and always yields the same.
	Pieces iter.Seq2[Piece, error]
	// Progress, if not nil, is told of bytes that are done. It is called by one goroutine
	// at a time.
	Progress func(bytes int64)
}

// Report is what a job did.
type Report struct {
	Extents int64 `json:"extents"` // of the pieces, those that follow one another in both files counted as one
	Bytes   int64 `json:"bytes"`   // in the pieces
	Equal   int64 `json:"equal"`   // bytes of them that the target has already; of Compare only
	Journal int64 `json:"journal"` // length of the journal in bytes; of Commit only
}

// errCut says how far a job came.
func (r Report) cut(err error) error {
	return fmt.Errorf("merge: after %d bytes: %w", r.Bytes, err)
}

// Compare reads what the pieces are and what the target has in their places, and counts
// what is equal.
func (j Job) Compare(ctx context.Context, target io.ReaderAt) (Report, error) {
	var mu sync.Mutex
	var equal int64
	theirs := sync.Pool{New: func() any { b := block.AlignedBuffer(loadBytes); return &b }}
	rep, err := j.each(ctx, func(to int64, ours []byte) error {
		buf := theirs.Get().(*[]byte)
		defer theirs.Put(buf)
		p := (*buf)[:len(ours)]
		if err := readFull(target, p, to); err != nil {
			return fmt.Errorf("target at byte %d: %w", to, err)
		}
		n := sameBytes(ours, p)
		mu.Lock()
		defer mu.Unlock()
		equal += n
		return nil
	})
	rep.Equal = equal
	return rep, err
}

// sameBytes counts the bytes of the sectors that are the same.
func sameBytes(a, b []byte) (n int64) {
	if bytes.Equal(a, b) {
		return int64(len(a))
	}
	const sector = 512
	for at := 0; at < len(a); at += sector {
		end := min(at+sector, len(a))
		if bytes.Equal(a[at:end], b[at:end]) {
			n += int64(end - at)
		}
	}
	return n
}

// Write brings the pieces to the target in place, and makes them durable. With direct they
// go past the page cache, which all places have to be multiples of 4096 bytes for.
func (j Job) Write(ctx context.Context, target transaction.Target, direct bool) (Report, error) {
	transaction.Reread(target) // or the sync below would report what an earlier run has reported
	var to transaction.Writer = target
	if direct {
		u, ok := target.(transaction.Uncached)
		if !ok {
			return Report{}, errors.New("merge: the target cannot be written to past the page cache")
		}
		past, err := u.Uncached()
		if err != nil {
			return Report{}, fmt.Errorf("merge: %w", err)
		}
		defer past.Close()
		to = past
	}
	rep, err := j.each(ctx, func(at int64, p []byte) error {
		if _, err := to.WriteAt(p, at); err != nil {
			return targetError(at, direct, err)
		}
		return nil
	})
	if serr := target.Sync(); err == nil {
		err = serr
	}
	return rep, err
}

func targetError(at int64, direct bool, err error) error {
	if direct && errors.Is(err, unix.EINVAL) {
		err = fmt.Errorf("%w: past the page cache it takes multiples of larger blocks; leave --direct away", err)
	}
	return fmt.Errorf("target at byte %d: %w", at, err)
}

// ErrPending says that a change was committed and has not reached the target yet.
var ErrPending = errors.New("a change that was committed has not reached the target yet")

// Commit brings the pieces to the target in one transaction: it is old or new, whatever
// crashes. The error wraps ErrPending when the next Open will finish it.
func (j Job) Commit(ctx context.Context, target transaction.Target, folder transaction.Folder) (rep Report, err error) {
	now, err := target.Stamp()
	if err != nil {
		return rep, fmt.Errorf("merge: %w", err)
	}
	t, err := transaction.Begin(ctx, target, folder)
	if err != nil {
		return rep, fmt.Errorf("merge: %w", err)
	}
	rep, err = j.each(ctx, t.Data)
	if err == nil && rep.Bytes > 0 {
		err = publish(ctx, t, now.Size)
	}
	rep.Journal = t.Journaled()
	if t.Committed() {
		if err == nil {
			err = t.Finish(ctx, transaction.Steps{})
		}
		if err != nil {
			err = fmt.Errorf("merge: %w: %w", ErrPending, err)
		}
	}
	return rep, errors.Join(err, t.Abort())
}

func publish(ctx context.Context, t *transaction.Txn, size int64) error {
	if err := t.Seal(ctx, size, nil); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return t.Publish()
}

// each reads all pieces and hands what follows one another in the target to do, by several
// goroutines at once, roughly in the order of the target. p is good until do returns.
func (j Job) each(ctx context.Context, do func(to int64, p []byte) error) (rep Report, err error) {
	group, inner := errgroup.WithContext(ctx)
	loads := make(chan []Piece)
	var mu sync.Mutex
	var done int64
	tell := func(n int64) {
		mu.Lock()
		defer mu.Unlock()
		if done += n; j.Progress != nil {
			j.Progress(done)
		}
	}
	for range workers {
		group.Go(func() error {
			buf := block.AlignedBuffer(loadBytes)
			for load := range loads {
				n, err := j.bring(load, buf, do)
				if err != nil {
					return err
				}
				tell(n)
			}
			return nil
		})
	}
	rep, err = j.deal(inner, loads)
	close(loads)
	if gerr := group.Wait(); gerr != nil {
		err = gerr
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		err = Report{Bytes: done}.cut(err)
	}
	return rep, err
}

// bring reads the pieces of a load and hands on what follows one another.
func (j Job) bring(load []Piece, buf []byte, do func(int64, []byte) error) (n int64, err error) {
	from := 0 // of buf, what is not handed on yet
	at := load[0].To
	for i, p := range load {
		to := int(n)
		if err := readFull(j.From, buf[to:to+int(p.Len)], p.From); err != nil {
			return 0, fmt.Errorf("what is to be brought, at byte %d: %w", p.From, err)
		}
		n += p.Len
		if i+1 < len(load) && load[i+1].To == p.To+p.Len {
			continue
		}
		if err := do(at, buf[from:n]); err != nil {
			return 0, err
		}
		if i+1 < len(load) {
			from, at = int(n), load[i+1].To
		}
	}
	return n, nil
}

// deal walks the pieces, joins and sorts them, and deals them out in loads.
func (j Job) deal(ctx context.Context, loads chan<- []Piece) (rep Report, err error) {
	var batch []Piece
	for p, err := range Joined(j.Pieces) {
		if err != nil {
			return rep, err
		}
		rep.Extents++
		rep.Bytes += p.Len
		if batch = append(batch, p); len(batch) == batchSize {
			if err := dealBatch(ctx, batch, loads); err != nil {
				return rep, err
			}
			batch = nil // the workers have it
		}
	}
	return rep, dealBatch(ctx, batch, loads)
}

func dealBatch(ctx context.Context, batch []Piece, loads chan<- []Piece) error {
	slices.SortFunc(batch, func(a, b Piece) int { return cmp.Compare(a.To, b.To) })
	var load []Piece
	free := int64(loadBytes)
	send := func() error {
		if len(load) == 0 {
			return nil
		}
		select {
		case loads <- load:
			load, free = nil, loadBytes
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	for _, p := range batch {
		for p.Len > 0 {
			if p.Len > free && free < loadBytes {
				if err := send(); err != nil {
					return err
				}
			}
			part := min(p.Len, free)
			load = append(load, Piece{p.From, p.To, part})
			free -= part
			p = Piece{p.From + part, p.To + part, p.Len - part}
			if free == 0 {
				if err := send(); err != nil {
					return err
				}
			}
		}
	}
	return send()
}

// Joined returns the pieces with those made one that follow one another in both files.
func Joined(pieces iter.Seq2[Piece, error]) iter.Seq2[Piece, error] {
	return func(yield func(Piece, error) bool) {
		var open Piece
		for p, err := range pieces {
			switch {
			case err != nil:
				yield(Piece{}, err)
				return
			case p.Len == 0:
			case open.Len > 0 && p.From == open.From+open.Len && p.To == open.To+open.Len:
				open.Len += p.Len
			default:
				if open.Len > 0 && !yield(open, nil) {
					return
				}
				open = p
			}
		}
		if open.Len > 0 {
			yield(open, nil)
		}
	}
}

// InPlace returns the pieces of a set that have the same place in both files.
func InPlace(set extent.Set) iter.Seq2[Piece, error] {
	return func(yield func(Piece, error) bool) {
		for _, e := range set.Extents() {
			if !yield(Piece{e.Off, e.Off, e.Len}, nil) {
				return
			}
		}
	}
}

func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}
