package mirror

import (
	"bufio"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/format/sidecar"
)

// Init makes a new mirror of size bytes, which counts as not yet copied. foreign
// says that the target may hold anything; otherwise it has never been written to
// and reads as zeros. What an earlier mirror in the folder knew is forgotten.
func (s *Store) Init(size, blockSize int64, source sidecar.Source, foreign bool) error {
	if err := s.init(size, blockSize, source, foreign); err != nil {
		return fmt.Errorf("mirror: %w", err)
	}
	return nil
}

func (s *Store) init(size, blockSize int64, source sidecar.Source, foreign bool) error {
	if err := s.Close(); err != nil {
		return err
	}
	for _, name := range []string{StateFile, journalFile, readyFile} {
		if err := s.folder.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := s.folder.Sync(); err != nil {
		return err
	}
	next := sidecar.State{Size: size, BlockSize: blockSize, Source: source, Foreign: foreign}
	if _, err := rand.Read(next.ID[:]); err != nil {
		return err
	}
	f, err := s.folder.Open(sumsFile, true)
	if err != nil {
		return err
	}
	s.sumsFile = f
	if s.sums, err = sidecar.CreateSums(f, next.ID, blockSize); err != nil {
		return err
	}
	if err := s.extendSums(size); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	s.reread() // a foreign target will be compared
	return s.saveState(next)
}

// Update is one run's changes to a mirror. It is not kept until Publish has
// returned nil, or Committed says so.
type Update struct {
	store     *Store
	size      int64 // bytes, of the target afterwards
	blockSize int64
	inPlace   bool          // a first copy: blocks go straight to the target
	committed bool          // the next Open would finish it
	next      sidecar.State // that Seal prepared

	// known covers the blocks that need not be written when their checksum is
	// the one in the sums file.
	known extent.Set
	// tainted says that sums and target may differ where known says they agree.
	tainted atomic.Bool
	// blank says that blocks outside known read as zeros: nothing was ever
	// written to them.
	blank bool

	mu      sync.Mutex      // guards what follows
	touched []extent.Extent // put (in place) or journaled since NextPass
	data    []extent.Extent // journaled, and not zeros
	journal *sidecar.JournalWriter
	out     *bufio.Writer
	file    File
	bytes   int64
}

// Begin starts an update after which the target has size bytes. Blocks in
// distrust are written whatever their checksum says; Check found them. A first
// copy that an earlier run left unfinished goes on.
func (s *Store) Begin(size int64, distrust extent.Set, blank bool) (*Update, error) {
	bs := s.state.BlockSize
	whole := extent.Extent{Len: min(s.Copied(), size)}
	if size != s.state.Size {
		whole.Len = whole.Len / bs * bs // the last block was short, or becomes so
	}
	u := &Update{
		store: s, size: size, blockSize: bs, inPlace: !s.state.Complete,
		known: extent.NewSet(whole).Subtract(distrust.Align(bs, s.state.Size)),
		blank: blank && !s.state.Complete,
	}
	u.tainted.Store(!distrust.Empty())
	if s.state.Complete {
		return u, nil
	}
	if size != s.state.Size {
		return nil, errors.New("mirror: the size of the source changed before the first copy ended")
	}
	next := s.state
	next.Target = sidecar.Target{}
	err := s.saveState(next)
	if err == nil {
		err = s.target.Resize(size) // Init may have been cut off before
	}
	if err != nil {
		return nil, fmt.Errorf("mirror: %w", err)
	}
	return u, nil
}

// Chunk is the content of neighbouring blocks.
type Chunk struct {
	Off  int64         // bytes, a multiple of the block size
	Data []byte        // whole blocks, but for the last one of the source
	Sums []sidecar.Sum // one for each block
}

// Extent returns where the chunk lies.
func (c Chunk) Extent() extent.Extent { return extent.Extent{Off: c.Off, Len: int64(len(c.Data))} }

// Put hands over some chunks, which do not overlap. It writes the blocks that
// differ from what the target holds, to the journal or, in a first copy, to the
// target, and returns their number in bytes. Calls for other chunks may be made by
// several goroutines at once.
func (u *Update) Put(chunks []Chunk) (written int64, err error) {
	defer func() {
		if err != nil {
			u.tainted.Store(true)
		}
	}()
	old, err := u.oldSums(chunks)
	if err != nil {
		return 0, err
	}
	for i, c := range chunks {
		n, err := u.put(c, old[i])
		written += n
		if err != nil {
			return written, fmt.Errorf("mirror: %w", err)
		}
	}
	return written, nil
}

// spanBlocks bounds the checksums that are read at a time for chunks that need
// few of them.
const spanBlocks = 16 << 10

// oldSums returns for each chunk the checksums that the target has. Those of
// scattered blocks are read in one go where they lie near enough.
func (u *Update) oldSums(chunks []Chunk) ([][]sidecar.Sum, error) {
	old := make([][]sidecar.Sum, len(chunks))
	for i := 0; i < len(chunks); {
		first, end, next := chunks[i].Off, chunks[i].Extent().End(), i+1
		for next < len(chunks) && chunks[next].Off >= end && (chunks[next].Extent().End()-first)/u.blockSize <= spanBlocks {
			end = chunks[next].Extent().End()
			next++
		}
		span := make([]sidecar.Sum, sidecar.Blocks(end-first, u.blockSize))
		if err := u.store.sums.Read(span, first); err != nil {
			return nil, err
		}
		for ; i < next; i++ {
			at := (chunks[i].Off - first) / u.blockSize
			old[i] = span[at:][:len(chunks[i].Sums)]
		}
	}
	return old, nil
}

func (u *Update) put(c Chunk, old []sidecar.Sum) (written int64, err error) {
	e := c.Extent()
	differs, err := u.compare(e, c.Data, c.Sums, old)
	if err != nil {
		return 0, err
	}
	for _, run := range runs(differs, c.Sums) {
		ext := u.extentOf(e, run)
		at := ext.Off - c.Off
		if err := u.write(ext, c.Data[at:at+ext.Len], c.Sums[run.from:run.to]); err != nil {
			return written, err
		}
		written += ext.Len
	}
	if u.inPlace {
		err = u.putSums(e, c.Sums, old)
	}
	return written, err
}

// putSums follows a first copy with the checksums of what it wrote.
func (u *Update) putSums(e extent.Extent, sums, old []sidecar.Sum) error {
	u.mu.Lock()
	u.touch(e)
	u.mu.Unlock()
	if slices.Equal(sums, old) {
		return nil
	}
	return u.store.sums.Write(sums, e.Off)
}

// touch notes e; u.mu is held.
func (u *Update) touch(e extent.Extent) {
	if n := len(u.touched); n > 0 && u.touched[n-1].End() == e.Off {
		u.touched[n-1].Len += e.Len
		return
	}
	u.touched = append(u.touched, e)
}

// compare tells for each block whether it has to be written.
func (u *Update) compare(e extent.Extent, data []byte, sums, old []sidecar.Sum) ([]bool, error) {
	differs := make([]bool, len(sums))
	allKnown := u.known.Covers(e)
	var held []byte
	for i := range sums {
		b := u.extentOf(e, run{from: i, to: i + 1})
		switch {
		case allKnown || u.known.Covers(b):
			differs[i] = sums[i] != old[i]
		case u.blank:
			differs[i] = sums[i] != sidecar.Sum{}
		case !u.inPlace: // distrusted, new, or journaled in this run
			differs[i] = true
		default:
			if held == nil {
				held = block.AlignedBuffer(len(data))
				if err := readFull(u.store.target, held, e.Off); err != nil {
					return nil, err
				}
			}
			at := b.Off - e.Off
			differs[i] = string(held[at:at+b.Len]) != string(data[at:at+b.Len])
		}
	}
	return differs, nil
}

// write puts one run of blocks that are all zero or all not.
func (u *Update) write(e extent.Extent, data []byte, sums []sidecar.Sum) error {
	zero := sums[0] == sidecar.Sum{}
	if u.inPlace {
		if err := room(u.store.target, u.store.folder); err != nil {
			return err
		}
		if zero {
			return u.store.target.Zero(e)
		}
		_, err := u.store.target.WriteAt(data, e.Off)
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := u.openJournal(); err != nil {
		return err
	}
	u.touch(e)
	if zero {
		return u.journal.Zero(e)
	}
	u.data = append(u.data, e)
	return u.journal.Data(e.Off, data, sums)
}

// NextPass must be called before a pass that may put blocks a second time. In a
// first copy their checksums are by then those of the target; otherwise the
// journal has overtaken the sums, and a block that was journaled is journaled
// again. No Put may be under way.
func (u *Update) NextPass() {
	u.mu.Lock()
	defer u.mu.Unlock()
	touched := extent.NewSet(u.touched...)
	u.touched = nil
	if u.inPlace {
		u.known = u.known.Union(touched)
	} else {
		u.known = u.known.Subtract(touched)
	}
}

// JournalBytes returns how much has been written to the journal.
func (u *Update) JournalBytes() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.bytes
}

func (u *Update) openJournal() error {
	if u.journal != nil {
		return nil
	}
	f, err := u.store.folder.Open(journalFile, true)
	if err != nil {
		return err
	}
	u.file = f
	u.out = bufio.NewWriterSize(&appender{u: u}, 1<<20)
	st := u.store.state
	u.journal, err = sidecar.NewJournalWriter(u.out, sidecar.JournalHeader{
		ID: st.ID, BlockSize: st.BlockSize, Update: st.Update + 1, Size: u.size,
	})
	return err
}

// appender writes to the end of the journal; u.mu is held.
type appender struct{ u *Update }

func (a *appender) Write(p []byte) (int, error) {
	if err := room(a.u.store.folder); err != nil {
		return 0, err
	}
	n, err := a.u.file.WriteAt(p, a.u.bytes)
	a.u.bytes += int64(n)
	return n, err
}

// run is the range [from, to) of blocks of one Put.
type run struct{ from, to int }

// runs joins neighbouring blocks that are to be written and are alike in being
// zero or not.
func runs(differs []bool, sums []sidecar.Sum) []run {
	var out []run
	for i, d := range differs {
		if !d {
			continue
		}
		if n := len(out); n > 0 && out[n-1].to == i && (sums[i] == sidecar.Sum{}) == (sums[i-1] == sidecar.Sum{}) {
			out[n-1].to++
			continue
		}
		out = append(out, run{from: i, to: i + 1})
	}
	return out
}

// extentOf returns the bytes of the target that a run of blocks of e covers.
func (u *Update) extentOf(e extent.Extent, r run) extent.Extent {
	off := e.Off + int64(r.from)*u.blockSize
	return extent.Extent{Off: off, Len: min(int64(r.to-r.from)*u.blockSize, e.End()-off)}
}

// readFull reads len(p) bytes; what lies behind the end reads as zeros.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		clear(p[n:])
		return nil
	}
	return err
}
