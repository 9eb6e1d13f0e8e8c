package pairs

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
	"tidemark/transfer/transaction"
)

// Verify reads the mirror at path and returns the blocks whose content is not
// what their checksums say, and the bytes that an image lacks or has too many; and
// how many bytes were checked. What was found is remembered, unless what is known of the
// mirror lies on a read-only filesystem, which is told; if there is anything the next run
// holds all of the mirror against its checksums. The error wraps ErrNoMirror when there is none, and
// ErrPending when a run has to finish what a crash left first.
func Verify(ctx context.Context, path string, o Options) (bad extent.Set, checked int64, err error) {
	o = o.withDefaults()
	if path, err = o.target(ctx, path); err != nil {
		return bad, 0, err
	}
	t, err := findTarget(path, o.StateDir)
	if err != nil {
		return bad, 0, err
	}
	defer t.close()
	if err := t.lock(false); err != nil {
		return bad, 0, err
	}
	known, err := knownIn(t.folder, path)
	if err == nil && t.dir == nil {
		err = fmt.Errorf("%s: %w: it is being made just now", path, ErrNoMirror)
	}
	if err != nil {
		return bad, 0, err
	}
	if known.Pending {
		return bad, 0, fmt.Errorf("target: %s: %w", t.path, ErrPending)
	}
	if t.disk, err = block.Open(t.path, block.Options{Direct: true}); err != nil {
		return bad, 0, fmt.Errorf("target: %w", err)
	}
	if t.store, err = mirror.Open(transaction.Disk{Device: t.disk}, t.dir); err != nil {
		return bad, 0, fmt.Errorf("target: %s: %w", t.path, err)
	}
	checked = t.store.Copied()
	bad, err = t.store.Check(ctx, counter("verify", checked, o))
	if misfit := t.store.Misfit(); !misfit.Empty() {
		bad, checked = bad.Union(extent.NewSet(misfit)), max(checked, misfit.End())
	}
	if err == nil {
		err = t.store.Checked(time.Now(), bad)
	}
	if errors.Is(err, syscall.EROFS) {
		o.note("%s: what was found is not remembered: %s lies on a read-only filesystem", path, t.folder)
		err = nil
	}
	return bad, checked, err
}

// Compare returns where the files or devices at two paths differ, in pieces of
// compareChunk, and how many bytes they have, the longer one's. Bytes that one
// of them lacks differ. It makes sense while nobody writes to either. One that is a mirror
// with an update that waits is no copy of anything: the error wraps ErrPending for path,
// and of against the update is finished first; ErrIncomplete where its first copy has not
// ended.
func Compare(ctx context.Context, path, against string, o Options) (bad extent.Set, checked int64, err error) {
	o = o.withDefaults()
	if path, err = o.target(ctx, path); err != nil {
		return bad, 0, err
	}
	if against, err = SourcePath(ctx, against); err != nil {
		return bad, 0, fmt.Errorf("%w: %w", ErrSource, err)
	}
	if _, err := settle(ctx, path, false, o); err != nil && !errors.Is(err, ErrIncomplete) {
		return bad, 0, fmt.Errorf("target: %w", err)
	}
	if _, err := settle(ctx, against, true, o); err != nil {
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
	found, err := compare(ctx, a, b, both, counter("compare", both, o))
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

// counter tells progress of one phase by the bytes that were done.
func counter(phase string, total int64, o Options) func(int64) {
	done := int64(0)
	return func(n int64) {
		done += n
		o.Progress(transfer.Event{Phase: phase, Done: done, Total: total})
	}
}
