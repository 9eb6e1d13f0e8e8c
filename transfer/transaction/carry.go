package transaction

import (
	"errors"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/format/redo"
)

const (
	pageSize = 4096 // bytes, of which direct I/O and cloning want multiples
	// runSize is how much of a journal one goroutine reads at once, in bytes, unless
	// an entry is longer.
	runSize = 1 << 20
	// maxWorkers bounds, with runSize, the memory that this takes.
	maxWorkers = 16
	// leastDirect is how long the pieces of a journal are on average for it to go
	// past the page cache, in bytes: the kernel sorts and joins shorter ones.
	leastDirect = 64 << 10
)

// carrier brings a sealed journal to its target.
type carrier struct {
	target  Target
	folder  Folder
	file    File
	journal *redo.Reader
	steps   Steps

	to      Writer
	run     int64 // bytes of the journal that are read at once
	total   int64 // of what the target gets, bytes
	bufs    sync.Pool
	noClone atomic.Bool

	mu   sync.Mutex // guards what follows
	done int64
}

// carry brings the journal to the target, makes that durable, and forgets the journal.
// looks says how the target looks when it is synced. A crash on the way is no harm: all of
// it is done again.
func (c *carrier) carry(looks func() (Stamp, error)) error {
	if err := c.target.Resize(c.journal.After); err != nil {
		return err
	}
	if c.steps.Resized != nil {
		if err := c.steps.Resized(c.journal.After); err != nil {
			return err
		}
	}
	if err := c.write(); err != nil {
		return err
	}
	if err := c.target.Sync(); err != nil {
		return err
	}
	now, err := looks()
	if err != nil {
		return err
	}
	if c.steps.Synced != nil {
		if err := c.steps.Synced(now); err != nil {
			return err
		}
	}
	if err := c.folder.Remove(ReadyFile); err != nil {
		return err
	}
	return c.folder.Sync()
}

// write writes all of the journal, in the way that suits all of it.
func (c *carrier) write() error {
	aligned := true
	c.run = runSize
	err := c.journal.Each(func(e redo.Entry) error {
		c.total += e.Len
		aligned = aligned && (e.Off|e.Len)%pageSize == 0
		if !e.Zero() {
			c.run = max(c.run, e.Len)
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.bufs.New = func() any { b := block.AlignedBuffer(int(c.run + 2*pageSize)); return &b }
	long := c.total >= leastDirect*c.journal.Entries
	if u, ok := c.target.(Uncached); ok && aligned && long {
		if past, err := u.Uncached(); err == nil {
			c.to = past
			err := errors.Join(c.passes(), past.Close())
			if !errors.Is(err, unix.EINVAL) {
				return err
			}
			c.done = 0 // the target wants larger multiples: all of it again
		}
	}
	c.to = c.target
	return c.passes()
}

// passes writes the passes one after the other, and the pieces of each in any order.
func (c *carrier) passes() error {
	group := c.group()
	var some []redo.Entry // that lie together in the journal
	pass := uint32(0)
	start := func() {
		if entries := some; len(entries) > 0 {
			group.Go(func() error { return c.copy(entries) })
		}
		some = nil
	}
	err := c.journal.Each(func(e redo.Entry) error {
		if e.Pass != pass {
			start()
			if err := group.Wait(); err != nil {
				return err
			}
			pass, group = e.Pass, c.group()
		}
		if e.Zero() {
			group.Go(func() error { return c.zero(e) })
			return nil
		}
		if len(some) > 0 && e.At+e.Len-some[0].At > c.run {
			start()
		}
		some = append(some, e)
		return nil
	})
	start()
	return errors.Join(group.Wait(), err)
}

func (c *carrier) group() *errgroup.Group {
	group := new(errgroup.Group)
	group.SetLimit(min(2*runtime.GOMAXPROCS(0), maxWorkers))
	return group
}

func (c *carrier) zero(e redo.Entry) error {
	if err := c.to.Zero(e.Extent); err != nil {
		return err
	}
	return c.wrote(e.Extent, nil)
}

// copy copies entries that one buffer can hold, when their data is what was recorded.
func (c *carrier) copy(entries []redo.Entry) error {
	held := c.bufs.Get().(*[]byte)
	defer c.bufs.Put(held)
	last := entries[len(entries)-1]
	from := entries[0].At / pageSize * pageSize
	to := min((last.At+last.Len+pageSize-1)/pageSize*pageSize, c.journal.Size())
	buf := (*held)[:(to-from+pageSize-1)/pageSize*pageSize]
	if n, err := c.file.ReadAt(buf, from); int64(n) < to-from {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	for _, e := range entries {
		data := buf[e.At-from : e.At-from+e.Len]
		if err := e.Check(data); err != nil {
			return err
		}
		if !c.clone(e) {
			if _, err := c.to.WriteAt(data, e.Off); err != nil {
				return err
			}
		}
		if err := c.wrote(e.Extent, data); err != nil {
			return err
		}
	}
	return nil
}

// clone shares the blocks of an entry with the journal, where that can be done.
func (c *carrier) clone(e redo.Entry) bool {
	to, ok := c.target.(Cloner)
	if !ok || c.noClone.Load() || (e.Off|e.Len|e.At)%pageSize != 0 {
		return false
	}
	if to.Clone(c.file, e.At, e.Extent) {
		return true
	}
	c.noClone.Store(true)
	return false
}

func (c *carrier) wrote(e extent.Extent, data []byte) error {
	if c.steps.Wrote != nil {
		if err := c.steps.Wrote(e, data); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done += e.Len; c.steps.Progress != nil {
		c.steps.Progress(c.done, c.total)
	}
	return nil
}
