package mirror

import (
	"fmt"
	"slices"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/format/state"
	"tidemark/format/sums"
	"tidemark/transfer"
	"tidemark/transfer/transaction"
)

// piece is a chunk with what is known of its blocks.
type piece struct {
	transfer.Chunk
	sums []sums.Sum // of the content
	old  []sums.Sum // that the target has
}

// Put implements transfer.Txn: it writes the blocks that differ from what the target
// holds, to the journal or, in a first copy, to the target.
func (t *txn) Put(chunks []transfer.Chunk) (written int64, err error) {
	defer func() {
		if err != nil {
			t.tainted.Store(true)
			err = fmt.Errorf("mirror: %w", err)
		}
	}()
	pieces := make([]piece, 0, len(chunks))
	bs := t.blockSize
	for _, c := range chunks {
		same, err := t.isHole(c)
		if err != nil {
			return 0, err
		}
		if same {
			continue
		}
		i := len(pieces)
		pieces = append(pieces, piece{Chunk: c})
		if c.Data == nil {
			pieces[i].sums = make([]sums.Sum, sums.Blocks(c.Len, bs))
		} else {
			pieces[i].sums = sumsOf(c.Data, bs)
		}
	}
	if err := t.readOld(pieces); err != nil {
		return 0, err
	}
	for _, p := range pieces {
		n, err := t.put(p)
		written += n
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// isHole reports whether a chunk of zeros is in the target, as holes of the sums show
// without reading them.
func (t *txn) isHole(c transfer.Chunk) (bool, error) {
	if c.Data != nil || !t.known.Covers(c.Extent) && (t.change != nil || !t.store.blank) {
		return false, nil
	}
	data, err := t.store.sums.Data(c.Extent)
	if err != nil || !data.Empty() {
		return false, err
	}
	if t.change == nil {
		t.touch(c.Extent)
	}
	return true, nil
}

// spanBlocks bounds the checksums that are read at a time for chunks that need few of
// them.
const spanBlocks = 16 << 10

// readOld fetches the checksums that the target has. Those of scattered blocks are read in
// one go where they lie near enough.
func (t *txn) readOld(pieces []piece) error {
	bs := t.blockSize
	for i := 0; i < len(pieces); {
		first, end, next := pieces[i].Off, pieces[i].End(), i+1
		for next < len(pieces) && pieces[next].Off >= end && (pieces[next].End()-first)/bs <= spanBlocks {
			end = pieces[next].End()
			next++
		}
		span := make([]sums.Sum, sums.Blocks(end-first, bs))
		if err := t.store.sums.Read(span, first); err != nil {
			return err
		}
		for ; i < next; i++ {
			pieces[i].old = span[(pieces[i].Off-first)/bs:][:len(pieces[i].sums)]
		}
	}
	return nil
}

func (t *txn) put(p piece) (written int64, err error) {
	differs, err := t.compare(p)
	if err != nil {
		return 0, err
	}
	for _, run := range runs(differs, p.sums) {
		e := t.extentOf(p, run)
		if err := t.write(e, p.data(e)); err != nil {
			return written, err
		}
		written += e.Len
	}
	if t.change == nil {
		t.touch(p.Extent)
		if !slices.Equal(p.sums, p.old) {
			err = t.store.sums.Write(p.sums, p.Off)
		}
	}
	return written, err
}

// data returns the content of a part of the piece, nil where all of it is zeros.
func (p piece) data(e extent.Extent) []byte {
	if p.Data == nil {
		return nil
	}
	return p.Data[e.Off-p.Off : e.End()-p.Off]
}

// touch remembers e until the next pass.
func (t *txn) touch(e extent.Extent) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := len(t.touched); n > 0 && t.touched[n-1].End() == e.Off {
		t.touched[n-1].Len += e.Len
		return
	}
	t.touched = append(t.touched, e)
}

// held reads what the target has in the place of a piece; nil where both are holes.
func (t *txn) held(p piece) ([]byte, error) {
	if p.Data == nil {
		data, err := sums.DataOf(t.store.target, p.Extent)
		if err != nil || data.Empty() {
			return nil, err
		}
	}
	held := block.AlignedBuffer(int(p.Len))
	return held, block.ReadPadded(t.store.target, held, p.Off)
}

// compare tells for each block whether it has to be written.
func (t *txn) compare(p piece) (differs []bool, err error) {
	differs = make([]bool, len(p.sums))
	allKnown := t.known.Covers(p.Extent)
	var held []byte
	read := false
	for i := range differs {
		b := t.extentOf(p, run{from: i, to: i + 1})
		switch {
		case allKnown || t.known.Covers(b):
			differs[i] = p.sums[i] != p.old[i]
		case t.change != nil: // distrusted, new, or journaled in this run
			differs[i] = true
		case t.store.blank:
			differs[i] = p.sums[i] != sums.Sum{}
		default:
			if !read {
				if held, err = t.held(p); err != nil {
					return nil, err
				}
				read = true
			}
			if held == nil {
				continue
			}
			was := held[b.Off-p.Off : b.End()-p.Off]
			if now := p.data(b); now == nil {
				differs[i] = !block.IsZero(was)
			} else {
				differs[i] = string(was) != string(now)
			}
		}
	}
	return differs, nil
}

// write writes blocks that are all zero or all not.
func (t *txn) write(e extent.Extent, data []byte) error {
	zero := data == nil || block.IsZero(data)
	if t.change == nil {
		if zero {
			return t.store.target.Zero(e)
		}
		_, err := t.store.target.WriteAt(data, e.Off)
		return err
	}
	t.touch(e)
	if zero {
		return t.change.Zero(e)
	}
	return t.change.Data(e.Off, data)
}

// run is the range [from, to) of blocks of one chunk.
type run struct{ from, to int }

// runs joins neighbouring blocks that are to be written and are alike in being zero or
// not.
func runs(differs []bool, all []sums.Sum) []run {
	var out []run
	for i, d := range differs {
		if !d {
			continue
		}
		if n := len(out); n > 0 && out[n-1].to == i && (all[i] == sums.Sum{}) == (all[i-1] == sums.Sum{}) {
			out[n-1].to++
			continue
		}
		out = append(out, run{from: i, to: i + 1})
	}
	return out
}

// extentOf returns the bytes of the target that a run of blocks of p covers.
func (t *txn) extentOf(p piece, r run) extent.Extent {
	bs := t.blockSize
	off := p.Off + int64(r.from)*bs
	return extent.Extent{Off: off, Len: min(int64(r.to-r.from)*bs, p.End()-off)}
}

// steps keep the sums in step with a journal that is brought to the target, and make next
// the state in the end.
func (s *Store) steps(next *state.State, check func(after int64, blob []byte) (bool, error)) transaction.Steps {
	return transaction.Steps{
		Check:   check,
		Resized: s.extendSums,
		Wrote: func(e extent.Extent, data []byte) error {
			if data == nil {
				return s.writeZeroSums(e)
			}
			return s.sums.Write(sumsOf(data, s.state.BlockSize), e.Off)
		},
		Synced: func(looks transaction.Stamp) error {
			if err := s.sumsFile.Sync(); err != nil {
				return err
			}
			next.Target = state.Target(looks)
			return s.saveState(*next)
		},
	}
}

// writeZeroSums is bounded in memory, however long the extent is.
func (s *Store) writeZeroSums(e extent.Extent) error {
	blocks := sums.Blocks(e.Len, s.state.BlockSize)
	zero := make([]sums.Sum, min(blocks, 1<<16))
	for off := e.Off; blocks > 0; {
		n := min(blocks, int64(len(zero)))
		if err := s.sums.Write(zero[:n], off); err != nil {
			return err
		}
		off += n * s.state.BlockSize
		blocks -= n
	}
	return nil
}
