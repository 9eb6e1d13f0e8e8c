package vault

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"tidemark/block"
	"tidemark/extent"
	format "tidemark/format/vault"
	"tidemark/vault/store"
)

const (
	// runSize is how many plain bytes a run has: what a read of one of them costs. Of a disk that is
	// read from its start one run of each point is in use at once (segmentsKept).
	runSize   = format.ChunkSize
	blockSize = 4096 // in which zeros are looked for in what is no chunk
	// entriesHeld bounds the entries in memory: of 64 bytes each.
	entriesHeld = 1 << 18
	// pieceSize is what Copy reads at once.
	pieceSize = 1 << 20
	// checkAfter is how long a point may take before what it needs is looked for again. It
	// is half of the least time after which Prune removes what was declared dead.
	checkAfter = MinGrace / 2
)

// scatter bounds how the bytes of a leaf page may lie.
type scatter struct {
	// segments is how many a page may refer to before those are given up of which it has least, and
	// gathered is how many it refers to then.
	segments, gathered int64
	// entries is how many a page may have before parts of it are written anew as chunks.
	entries int
}

// mayScatter is for pages whose bytes are in 256 segments when they lie together. To read a leaf costs
// at most two and a half times its bytes. In the long run a point of scattered blocks stores
// half as much again as changed (docs/design/0007). With more entries not even blocks are whole.
var mayScatter = scatter{segments: 640, gathered: 512, entries: format.LeafSize / blockSize}

// From says what a new point is made from.
type From struct {
	Disk format.ID
	Size int64     // of the disk, bytes
	ID   format.ID // of the new point; zero stands for a random one
	// Base is the point whose bytes it has where nothing is put; nil stands for zeros. What lies
	// behind the end of a smaller one is zeros.
	Base *Point
}

// Writer writes one point. Put and Zero may be called by several goroutines at once for extents
// that do not overlap.
type Writer struct {
	v      *Vault
	ctx    context.Context
	from   From
	base   tree
	lease  *lease
	packs  *packer
	began  time.Time
	dead   map[format.PackName]bool // when it began
	looked time.Time                // when all that it needs was there
	check  time.Duration            // checkAfter
	may    scatter

	mu    sync.Mutex
	edits map[int64]edits        // by number of the leaf
	held  int                    // entries in edits
	run   run                    // places of the disk
	pages []map[int64]format.Ref // by level and number: pages that are new; zero: only zeros

	sealed   *Point // by Seal
	manifest []byte // the object of that

	tried, helped atomic.Int64 // chunks that were compared with the base, and of how many it has most

	pool sync.Pool // of *scratch

	broken atomic.Pointer[error] // the first error, after which nothing may be relied on

	usedMu sync.Mutex
	used   refSet // segments that were there before, and that new entries name
}

// scratch has room for a chunk that does not get smaller when it is compressed.
type scratch [format.ChunkSize + 64]byte

// Begin starts a new point. It lets Prune know, and learns which packs there are. The writer must be
// closed.
func (v *Vault) Begin(ctx context.Context, from From) (*Writer, error) {
	if from.Size < 0 || from.Disk.IsZero() {
		return nil, fmt.Errorf("vault: a point of %d bytes of disk %v", from.Size, from.Disk)
	}
	if v.noLock != nil {
		return nil, fmt.Errorf("vault: the vault has a lock of %v, which this place does not keep: %w", v.header.Lock, v.noLock)
	}
	now := time.Now()
	w := &Writer{
		v: v, ctx: ctx, from: from, base: tree{v: v}, began: now, looked: now, check: checkAfter, may: mayScatter, edits: map[int64]edits{}, used: refSet{},
		pages: make([]map[int64]format.Ref, format.Level(from.Size)+1),
		pool:  sync.Pool{New: func() any { return new(scratch) }},
	}
	if from.Base != nil {
		w.base = v.treeOf(from.Base.Point)
	}
	for i := range w.pages {
		w.pages[i] = map[int64]format.Ref{}
	}
	var err error
	if w.lease, err = v.takeLease(ctx, backup); err != nil {
		return nil, err
	}
	if err = v.sync(ctx); err == nil {
		w.dead, err = v.deadPacks(ctx)
	}
	if err == nil && from.Base != nil {
		err = w.baseIsThere()
	}
	if err != nil {
		return nil, errors.Join(err, w.lease.end())
	}
	w.packs = newPacker(ctx, v)
	return w, nil
}

// baseIsThere fails when the base was forgotten.
func (w *Writer) baseIsThere() error {
	_, err := w.v.store.Get(w.ctx, w.from.Base.Name.String(), 0, 1, nil)
	if errors.Is(err, store.ErrNotExist) {
		return fmt.Errorf("vault: %w: %w", ErrOvertaken, err)
	}
	return err
}

// Close gives the point up, unless it was committed. What was stored for it is found by the
// next one, or removed by Prune.
func (w *Writer) Close() error {
	w.packs.wait()
	return w.lease.end()
}

// Copy puts what src has in the extents of a set, by several goroutines.
func (w *Writer) Copy(src io.ReaderAt, set extent.Set) error {
	g, ctx := errgroup.WithContext(w.ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	buffers := sync.Pool{New: func() any { return new([pieceSize]byte) }}
	for _, e := range set.Clip(extent.Extent{Len: w.from.Size}).Extents() {
		for at := e.Off; at < e.End() && ctx.Err() == nil; {
			end := min(at/pieceSize*pieceSize+pieceSize, e.End())
			piece := extent.Extent{Off: at, Len: end - at}
			g.Go(func() error {
				buffer := buffers.Get().(*[pieceSize]byte)
				defer buffers.Put(buffer)
				b := buffer[:piece.Len]
				if n, err := src.ReadAt(b, piece.Off); n < len(b) {
					return fmt.Errorf("vault: read the source at %v: %w", piece, err)
				}
				_, err := w.Put(piece.Off, b)
				return err
			})
			at = end
		}
	}
	return cmp.Or(g.Wait(), w.ctx.Err())
}

// sound is the error of a writer that failed before: what it was told may be lost. A call that
// fails leaves its error for the next one.
func (w *Writer) sound() error {
	if err := w.broken.Load(); err != nil {
		return fmt.Errorf("vault: the point was given up: %w", *err)
	}
	return w.ctx.Err()
}

func (w *Writer) fail(err *error) {
	if *err != nil {
		first := *err
		w.broken.CompareAndSwap(nil, &first)
	}
}

// Put puts bytes at a place of the disk. It returns how many of them the vault did not have, as far
// as it looks: whole chunks are found again, and zeros take no room. After an error of Put, Zero or
// Seal the point cannot be finished.
func (w *Writer) Put(off int64, data []byte) (fresh int64, err error) {
	if e := (extent.Extent{Off: off, Len: int64(len(data))}); !e.Valid() || e.End() > w.from.Size {
		return 0, fmt.Errorf("vault: bytes %v of a disk of %d", e, w.from.Size)
	}
	if err := w.sound(); err != nil {
		return 0, err
	}
	defer w.fail(&err)
	var buf *scratch
	for len(data) > 0 {
		n := min(format.ChunkSize-off%format.ChunkSize, int64(len(data)))
		piece, isNew := data[:n], int64(0)
		if off%format.ChunkSize == 0 && (n == format.ChunkSize || off+n == w.from.Size) {
			if buf == nil {
				buf = w.pool.Get().(*scratch)
				defer w.pool.Put(buf)
			}
			isNew, err = w.putChunk(off, piece, buf[:0])
		} else {
			isNew, err = w.putRun(off, piece)
		}
		if err != nil {
			return fresh, err
		}
		fresh += isNew
		data, off = data[n:], off+n
	}
	return fresh, nil
}

// Zero puts zeros.
func (w *Writer) Zero(e extent.Extent) (err error) {
	if !e.Valid() || e.End() > w.from.Size {
		return fmt.Errorf("vault: zeros %v of a disk of %d", e, w.from.Size)
	}
	if err := w.sound(); err != nil {
		return err
	}
	defer w.fail(&err)
	w.mu.Lock()
	defer w.mu.Unlock()
	for e.Len > 0 {
		n := min(format.LeafSize-e.Off%format.LeafSize, e.Len)
		if !w.isHole(extent.Extent{Off: e.Off, Len: n}) {
			if err := w.enter(e.Off, format.Entry{Len: n}); err != nil {
				return err
			}
		}
		e.Off, e.Len = e.Off+n, e.Len-n
	}
	return nil
}

// isHole reports whether a part of one leaf page is zeros already: no page is there, and none will be
// made. It costs less than to note zeros that the page of a sparse disk has. w.mu is held.
func (w *Writer) isHole(e extent.Extent) bool {
	leaf := e.Off / format.LeafSize
	_, edited := w.edits[leaf]
	_, written := w.pages[0][leaf]
	if edited || written || w.run.overlaps(e) {
		return false
	}
	n, err := w.base.at(w.ctx, 0, leaf*format.LeafSize)
	return err == nil && n.ref.IsZero()
}

func (w *Writer) putChunk(off int64, data, scratch []byte) (fresh int64, err error) {
	e := format.Entry{Len: int64(len(data))}
	if !block.IsZero(data) {
		h := w.v.keys.Hash(data)
		var found bool
		if e.Ref, found, err = w.find(h, e.Len); err != nil {
			return 0, err
		}
		if !found {
			if parts, ok, err := w.differing(off, data); err != nil {
				return 0, err
			} else if ok {
				return w.putParts(off, data, parts)
			}
			if e.Ref, err = w.packs.add(format.Chunk, data, scratch, h); err != nil {
				return 0, err
			}
			fresh = e.Len
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return fresh, w.enter(off, e)
}

// putParts puts parts of the data that lies at off.
func (w *Writer) putParts(off int64, data []byte, parts []extent.Extent) (fresh int64, err error) {
	for _, part := range parts {
		n, err := w.putRun(part.Off, data[part.Off-off:part.End()-off])
		fresh += n
		if err != nil {
			return fresh, err
		}
	}
	return fresh, nil
}

// find returns where a chunk lies, if it does.
func (w *Writer) find(h format.Hash, size int64) (ref format.Ref, ok bool, err error) {
	if ref, ok := w.packs.find(h); ok {
		return ref, true, nil
	}
	return w.known(h, size)
}

// chunk returns where a chunk lies, and stores it when it lies nowhere yet.
func (w *Writer) chunk(data, scratch []byte) (format.Ref, error) {
	h := w.v.keys.Hash(data)
	if ref, ok, err := w.find(h, int64(len(data))); err != nil || ok {
		return ref, err
	}
	return w.packs.add(format.Chunk, data, scratch, h)
}

// known finds a chunk in the packs that are in the store, but for those that were declared dead.
func (w *Writer) known(h format.Hash, size int64) (ref format.Ref, ok bool, err error) {
	if ref, ok, err = w.v.index.find(h); err != nil || !ok {
		return ref, false, err
	}
	t, err := w.v.table(w.ctx, ref.Pack)
	if err != nil {
		return ref, false, err
	}
	s, there := t.Find(ref.Segment)
	if !there || s.Hash != h || s.Plain != size || w.dead[t.name] {
		return ref, false, nil
	}
	w.usedMu.Lock()
	w.used.add(ref)
	w.usedMu.Unlock()
	return ref, true, nil
}

// putRun keeps bytes that are no chunk until there are enough of them, without blocks of zeros.
func (w *Writer) putRun(off int64, data []byte) (fresh int64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(data) > 0 {
		n := min(blockSize-off%blockSize, int64(len(data)))
		zero := block.IsZero(data[:n])
		for n < int64(len(data)) { // as far as it is the same
			next := min(n+blockSize, int64(len(data)))
			if block.IsZero(data[n:next]) != zero {
				break
			}
			n = next
		}
		if zero {
			err = w.enter(off, format.Entry{Len: n})
		} else {
			err = w.hold(off, data[:n])
			fresh += n
		}
		if err != nil {
			return fresh, err
		}
		data, off = data[n:], off+n
	}
	return fresh, nil
}

// hold keeps bytes for a run. w.mu is held.
func (w *Writer) hold(off int64, data []byte) error {
	e := extent.Extent{Off: off, Len: int64(len(data))}
	if !w.run.fits(e.Len) || w.run.overlaps(e) {
		if err := w.endRun(); err != nil {
			return err
		}
	}
	copy(w.run.add(e), data)
	return nil
}

// endRun stores what is held for a run. w.mu is held.
func (w *Writer) endRun() error {
	entries, err := w.run.end(w.packs)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := w.enter(e.Off, e); err != nil {
			return err
		}
	}
	return nil
}

// enter notes where the bytes of the disk from off on lie, which are of one leaf page. w.mu is held.
func (w *Writer) enter(off int64, e format.Entry) error {
	if w.run.overlaps(extent.Extent{Off: off, Len: e.Len}) {
		if err := w.endRun(); err != nil {
			return err
		}
	}
	leaf := off / format.LeafSize
	e.Off = off % format.LeafSize
	old := w.edits[leaf]
	now := old.put(e)
	w.held += len(now) - len(old)
	w.edits[leaf] = now
	if w.held > entriesHeld {
		return w.endLeaves()
	}
	return nil
}
