// Package copies looks at copies that are there, and changes none: whether one is what its
// checksums say ([Verify]) or what its source holds ([Compare]), what lies where in it
// ([Where]), and its files ([Browse]).
//
// A mirror is locked while it is looked at; functions on different copies may run at the
// same time.
package copies

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/transfer"
	"tidemark/transfer/mirror"
	"tidemark/transfer/names"
	"tidemark/transfer/origin"
	"tidemark/transfer/target"
	"tidemark/transfer/traces"
	"tidemark/transfer/transaction"
	"tidemark/words"
)

// Options say where to look, and whom to tell. The zero value works.
type Options struct {
	StateDir string // target.DefaultStateDir when empty
	Progress func(transfer.Event)
}

func (o Options) note(format string, args ...any) {
	o.tell(transfer.Event{Text: fmt.Sprintf(format, args...)})
}

func (o Options) tell(e transfer.Event) {
	if o.Progress != nil {
		o.Progress(e)
	}
}

// Verify reads the mirror at path and returns the blocks whose content is not
// what their checksums say, and the bytes that an image lacks or has too many; and
// how many bytes were checked. What was found is remembered, unless what is known of the
// mirror lies on a read-only filesystem, which is told; if there is anything the next run
// holds all of the mirror against its checksums. The error wraps target.ErrNoMirror when there
// is none, target.ErrPending when a run has to finish what a crash left first, and
// target.ErrIncomplete when nothing is wrong with what was copied, but that is not all.
func Verify(ctx context.Context, path string, o Options) (bad extent.Set, checked int64, err error) {
	if path, err = names.Noted(ctx, path, o.note); err != nil {
		return bad, 0, err
	}
	t, err := target.Find(path, o.StateDir)
	if err != nil {
		return bad, 0, err
	}
	defer t.Close()
	if err := t.Lock(false); err != nil {
		return bad, 0, err
	}
	known, err := target.KnownIn(t.Folder, path)
	if err == nil && t.Dir == nil {
		err = fmt.Errorf("%s: %w: it is being made just now", path, target.ErrNoMirror)
	}
	if err != nil {
		return bad, 0, err
	}
	if known.Pending {
		return bad, 0, fmt.Errorf("target: %s: %w", t.Path, target.ErrPending)
	}
	if t.Disk, err = block.Open(t.Path, block.Options{Direct: true}); err != nil {
		return bad, 0, fmt.Errorf("target: %w", err)
	}
	store, err := mirror.Open(transaction.Disk{Device: t.Disk}, t.Dir)
	if err != nil {
		return bad, 0, fmt.Errorf("target: %s: %w", t.Path, err)
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	checked = store.Copied()
	bad, err = store.Check(ctx, transfer.Count("verify", checked, o.tell))
	if misfit := store.Misfit(); !misfit.Empty() {
		bad, checked = bad.Union(extent.NewSet(misfit)), max(checked, misfit.End())
	}
	if err == nil {
		err = store.Checked(time.Now(), bad)
	}
	if errors.Is(err, syscall.EROFS) {
		o.note("%s: what was found is not remembered: %s lies on a read-only filesystem", path, t.Folder)
		err = nil
	}
	if err == nil && known.Complete && !bad.Empty() {
		err = o.tellUse(t, known, bad)
	}
	if err == nil && !known.Complete {
		text := fmt.Sprintf("%s of %s were copied, and checked", words.Size(known.Copied), words.Size(known.Size))
		if bad.Empty() {
			return bad, checked, fmt.Errorf("%s: %w: %s", path, target.ErrIncomplete, text)
		}
		o.note("%s: %v: %s", path, target.ErrIncomplete, text)
	}
	return bad, checked, err
}

// tellUse tells where what differs comes from somebody's use of the copy: the next run does
// not repair that.
func (o Options) tellUse(t *target.Target, known target.Known, bad extent.Set) error {
	found, err := traces.Find(t.Disk, min(t.Disk.Size(), known.Size), known.BlockSize, false)
	if err != nil {
		return fmt.Errorf("target: %s: %w", t.Path, err)
	}
	if tr, ok := traces.Changed(found.Sure, bad); ok {
		o.note("%s: %s changed: it was used since it was copied, and the next run refuses to revert that without --force", t.Path, tr.What)
	}
	return nil
}

// Compare returns where the files or devices at two paths differ, in pieces of
// compareChunk, and how many bytes they have, the longer one's. Bytes that one
// of them lacks differ. It makes sense while nobody writes to either. One that is a mirror
// with an update that waits is no copy of anything: the error wraps target.ErrPending for path,
// and of against the update is finished first; target.ErrIncomplete where its first copy has not
// ended.
func Compare(ctx context.Context, path, against string, o Options) (bad extent.Set, checked int64, err error) {
	if path, err = names.Noted(ctx, path, o.note); err != nil {
		return bad, 0, err
	}
	if against, err = names.Source(ctx, against); err != nil {
		return bad, 0, fmt.Errorf("%w: %w", origin.ErrSource, err)
	}
	if _, err := target.Settle(ctx, path, o.StateDir, false, o.note); err != nil && !errors.Is(err, target.ErrIncomplete) {
		return bad, 0, fmt.Errorf("target: %w", err)
	}
	if _, err := target.Settle(ctx, against, o.StateDir, true, o.note); err != nil {
		return bad, 0, fmt.Errorf("source: %w", err)
	}
	a, err := block.Open(path, block.Options{Direct: true})
	if err != nil {
		return bad, 0, fmt.Errorf("target: %w", err)
	}
	defer a.Close()
	b, err := block.Open(against, block.Options{Direct: true})
	if err != nil {
		return bad, 0, fmt.Errorf("source: %w", err)
	}
	defer b.Close()
	both := min(a.Size(), b.Size())
	checked = max(a.Size(), b.Size())
	if a.IsDevice() && a.Size() > b.Size() {
		checked = both // a target device may be larger than its source
	}
	found, err := compare(ctx, a, b, both, transfer.Count("compare", both, o.tell))
	if both < checked {
		found = append(found, extent.Extent{Off: both, Len: checked - both})
	}
	return extent.NewSet(found...), checked, err
}

// compareChunk is how much is compared at a time, in bytes; differences are told
// in pieces of comparePiece.
const (
	compareChunk = 1 << 20
	comparePiece = 4096
)

// compareWindow is how much is looked through for holes at once, in bytes; a multiple of
// compareChunk.
const compareWindow = 1 << 30

// eitherHolds returns the parts of e that are no holes of both.
func eitherHolds(a, b *block.Device, e extent.Extent) (extent.Set, error) {
	x, err := a.Data(e)
	if err != nil {
		return x, err
	}
	y, err := b.Data(e)
	return x.Union(y), err
}

func compare(ctx context.Context, a, b *block.Device, size int64, count func(int64)) (bad []extent.Extent, err error) {
	x, y := block.AlignedBuffer(compareChunk), block.AlignedBuffer(compareChunk)
	known := int64(0) // as far as the holes have been looked for
	var data extent.Set
	for off := int64(0); off < size; off += compareChunk {
		if off >= known {
			known = min(off+compareWindow, size)
			if data, err = eitherHolds(a, b, extent.Extent{Off: off, Len: known - off}); err != nil {
				return bad, err
			}
			if data.Empty() {
				count(known - off)
				off = known - compareChunk
				continue
			}
		}
		if ctx.Err() != nil {
			return bad, context.Cause(ctx)
		}
		n := min(compareChunk, size-off)
		if data.Clip(extent.Extent{Off: off, Len: n}).Empty() {
			count(n)
			continue
		}
		if _, err := a.ReadAt(x[:n], off); err != nil {
			return bad, fmt.Errorf("compare: %s at byte %d: %w", a.Path(), off, err)
		}
		if _, err := b.ReadAt(y[:n], off); err != nil {
			return bad, fmt.Errorf("compare: %s at byte %d: %w", b.Path(), off, err)
		}
		for at := int64(0); at < n; at += comparePiece {
			end := min(at+comparePiece, n)
			if !bytes.Equal(x[at:end], y[at:end]) {
				bad = append(bad, extent.Extent{Off: off + at, Len: end - at})
			}
		}
		count(n)
	}
	return bad, nil
}
