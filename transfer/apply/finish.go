package apply

import (
	"errors"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"tidemark/block"
	"tidemark/format/redo"
	"tidemark/transfer/mirror"
)

// jobSize is how much of a journal one goroutine reads at once, in bytes: no less
// than the data of one entry, and what surrounds it in its pages.
const jobSize = 4<<20 + 2*pageSize

// cloner is a target that can share blocks with a journal instead of copying
// them.
type cloner interface {
	// Clone makes e the content that f has at byte at. It reports false, and has
	// changed nothing, where that cannot be done.
	Clone(f mirror.File, at int64, e redo.Entry) bool
}

// finish brings a committed journal to the target, makes that durable, and forgets
// the journal. A crash in between is no harm: all of it is done again.
func (s *Store) finish(j *redo.Reader, f mirror.File, o Options) error {
	if err := s.target.Resize(j.After); err != nil {
		return err
	}
	c := &copier{store: s, f: f, size: j.Size(), o: o}
	if err := j.Each(func(e redo.Entry) error { c.total += e.Len; return nil }); err != nil {
		return err
	}
	c.bufs.New = func() any { b := block.AlignedBuffer(jobSize); return &b }
	if err := c.copy(j); err != nil {
		return err
	}
	if err := s.target.Sync(); err != nil {
		return err
	}
	if err := s.folder.Remove(readyFile); err != nil {
		return err
	}
	return s.folder.Sync()
}

// copier copies a journal to the target.
type copier struct {
	store   *Store
	f       mirror.File
	size    int64 // of the journal, bytes
	total   int64 // of what the target gets, bytes
	o       Options
	bufs    sync.Pool
	noClone atomic.Bool

	mu   sync.Mutex // guards what follows
	done int64
}

func (c *copier) copy(j *redo.Reader) error {
	var group errgroup.Group
	group.SetLimit(2 * runtime.GOMAXPROCS(0))
	var job []redo.Entry // that lie together in the journal
	start := func() {
		if entries := job; len(entries) > 0 {
			group.Go(func() error { return c.run(entries) })
		}
		job = nil
	}
	err := j.Each(func(e redo.Entry) error {
		if e.Zero() {
			group.Go(func() error { return c.zero(e) })
			return nil
		}
		if len(job) > 0 && e.At+e.Len-job[0].At > jobSize-2*pageSize {
			start()
		}
		job = append(job, e)
		return nil
	})
	start()
	return errors.Join(group.Wait(), err)
}

func (c *copier) zero(e redo.Entry) error {
	err := c.store.target.Zero(e.Extent)
	c.tell(e.Len)
	return err
}

// run copies entries that one buffer can hold, when their data is what was written.
func (c *copier) run(entries []redo.Entry) error {
	held := c.bufs.Get().(*[]byte)
	defer c.bufs.Put(held)
	last := entries[len(entries)-1]
	from := entries[0].At / pageSize * pageSize
	to := min((last.At+last.Len+pageSize-1)/pageSize*pageSize, c.size)
	buf := (*held)[:(to-from+pageSize-1)/pageSize*pageSize]
	if n, err := c.f.ReadAt(buf, from); int64(n) < to-from {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	for _, e := range entries {
		if err := e.Check(buf[e.At-from : e.At-from+e.Len]); err != nil {
			return err
		}
	}
	for _, e := range c.clone(entries) {
		at := e.At - from
		if _, err := c.store.target.WriteAt(buf[at:at+e.Len], e.Off); err != nil {
			return err
		}
		c.tell(e.Len)
	}
	return nil
}

// clone shares what can be shared and returns the rest.
func (c *copier) clone(entries []redo.Entry) []redo.Entry {
	to, ok := c.store.target.(cloner)
	if !ok || c.noClone.Load() {
		return entries
	}
	var rest []redo.Entry
	for _, e := range entries {
		switch {
		case (e.Off|e.Len|e.At)%pageSize != 0 || c.noClone.Load():
			rest = append(rest, e)
		case to.Clone(c.f, e.At, e):
			c.tell(e.Len)
		default:
			c.noClone.Store(true)
			rest = append(rest, e)
		}
	}
	return rest
}

func (c *copier) tell(n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done += n
	c.o.progress(PhaseWrite, c.done, c.total)
}
