// Package backup is the sink that keeps the points of a disk in a vault.
//
// For most uses, Open the sink of a disk and hand it to transfer.Run: each run makes one more
// point, from the newest that there is. A point appears when the transaction is published,
// after all that it needs is durable. A run that was cut off leaves no point; what it stored is
// found again by the next one, chunk by chunk, so that a first copy has no checkpoints.
//
// A Sink is for one run.
package backup

import (
	"context"
	"errors"
	"fmt"
	"os"

	"tidemark/extent"
	format "tidemark/format/vault"
	"tidemark/track"
	"tidemark/transfer"
	"tidemark/vault"
)

// blockSize is that of a Have: what a vault looks for zeros in.
const blockSize = 4096

// Options say what is remembered along with a point.
type Options struct {
	Run   string   // common to the points of several disks at one instant
	Tags  []string // in any order
	Hooks bool     // the run has hooks, and notes how they ended
}

// Sink makes a point of a disk.
type Sink struct {
	v      *vault.Vault
	disk   vault.Disk
	o      Options
	newest *vault.Point  // nil where the disk has none
	w      *vault.Writer // since Begin
	made   vault.Point
}

// Open returns the sink for the next point of a disk. It reads the newest one's manifest.
func Open(ctx context.Context, v *vault.Vault, d vault.Disk, o Options) (*Sink, error) {
	newest, err := v.Newest(ctx, d.ID)
	if err != nil {
		return nil, fmt.Errorf("backup: %s: %w", d.Name, err)
	}
	return &Sink{v: v, disk: d, o: o, newest: Base(newest)}, nil
}

// Base returns the point that the next one is made from, given the newest: nil where that lost
// something, so that all is read and what the vault has not is stored.
func Base(newest *vault.Point) *vault.Point {
	if newest == nil || newest.Lost {
		return nil
	}
	return newest
}

// Made returns the point that was published, the zero value while there is none.
func (s *Sink) Made() vault.Point { return s.made }

// Stored returns how many bytes of packs the vault has got for the point so far.
func (s *Sink) Stored() int64 {
	if s.w == nil {
		return 0
	}
	return s.w.Stored()
}

// Have implements transfer.Sink.
func (s *Sink) Have() transfer.Have { return Have(s.newest) }

// Have is what there is of a disk whose next point is made from that; nil: from none.
func Have(newest *vault.Point) transfer.Have {
	h := transfer.Have{Block: blockSize}
	if newest != nil {
		h.Size, h.Mark, h.Complete = newest.Size, track.Mark(newest.Mark), true
	}
	return h
}

// Begin implements transfer.Sink.
func (s *Sink) Begin(ctx context.Context, size int64, _ func(transfer.Event)) (transfer.Txn, extent.Set, error) {
	w, err := s.v.Begin(ctx, vault.From{Disk: s.disk.ID, Size: size, Base: s.newest})
	if err != nil {
		return nil, extent.Set{}, fmt.Errorf("backup: %s: %w", s.disk.Name, err)
	}
	s.w = w
	return &txn{s: s, w: w}, extent.Set{}, nil
}

// txn is a point in the making.
type txn struct {
	s     *Sink
	w     *vault.Writer
	state transfer.TxnState
}

// Put implements transfer.Txn.
func (t *txn) Put(chunks []transfer.Chunk) (written int64, err error) {
	for _, c := range chunks {
		var fresh int64
		if c.Data == nil {
			err = t.w.Zero(c.Extent)
		} else {
			fresh, err = t.w.Put(c.Off, c.Data)
		}
		written += fresh
		if err != nil {
			break
		}
	}
	return written, err
}

// NextPass implements transfer.Txn: a later Put of a place holds by itself.
func (t *txn) NextPass() {}

// Checkpoint implements transfer.Txn. It does nothing: the next run finds the chunks that were
// stored, and reads the source for that.
func (t *txn) Checkpoint(int64, track.Mark) error { return nil }

// Seal implements transfer.Txn.
func (t *txn) Seal(c transfer.Commit) error {
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("backup: %s: %w", t.s.disk.Name, err)
	}
	hooks := ""
	switch {
	case c.PostHook != nil:
		hooks = format.PostHookFailed
	case t.s.o.Hooks:
		hooks = format.HooksOK
	}
	return t.w.Seal(format.Point{
		Moment: c.Time, Mark: string(c.Mark), Run: t.s.o.Run, Host: host, Tracker: c.Run.Tracker, View: c.Run.View,
		Frozen: c.Run.Frozen > 0, Changed: c.Run.Changed, Read: c.Run.Read, Tags: t.s.o.Tags, Hooks: hooks,
	})
}

// Publish implements transfer.Txn.
func (t *txn) Publish() error {
	made, err := t.w.Publish()
	if err == nil {
		t.s.made, t.state = made, transfer.TxnCommitted
	}
	return err
}

// Finish implements transfer.Txn. Nothing is left to be done for the point.
func (t *txn) Finish() error {
	if t.state != transfer.TxnCommitted {
		return errors.New("backup: the point was not published")
	}
	if err := t.w.Close(); err != nil {
		return err
	}
	t.state = transfer.TxnFinished
	return nil
}

// Abort implements transfer.Txn. A vault keeps no history of runs that made no point.
func (t *txn) Abort(transfer.RunRecord) error {
	if t.state != transfer.TxnOpen {
		return nil
	}
	return t.w.Close()
}

// State implements transfer.Txn.
func (t *txn) State() transfer.TxnState { return t.state }

// Journaled implements transfer.Txn: what is written goes into the vault alone.
func (t *txn) Journaled() int64 { return 0 }
