package snapstore

import (
	"errors"
	"fmt"
	"math"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
)

// Fault is one thing wrong with a store, at one place. As an error it wraps ErrDamaged.
type Fault struct {
	Object  string `json:"object"` // an exception, or which area
	Offset  int64  `json:"offset"` // of that in the store, in bytes
	Problem string `json:"problem"`
}

func (f *Fault) Error() string {
	return fmt.Sprintf("snapstore: %s at byte %d: %v: %s", f.Object, f.Offset, ErrDamaged, f.Problem)
}

func exceptionFault(at int64, problem string) *Fault {
	return &Fault{Object: "exception", Offset: at, Problem: problem}
}

// Unwrap returns ErrDamaged.
func (f *Fault) Unwrap() error { return ErrDamaged }

// CheckOptions say how to check. The zero value checks the store by itself, and fails at
// the first fault.
type CheckOptions struct {
	// OriginSize is the size of the origin in bytes: an exception behind its end is a
	// fault. 0: it is not known.
	OriginSize int64
	// Faults, when set, gets each fault, and the check goes on.
	Faults func(*Fault)
}

// Summary is what a store holds.
type Summary struct {
	Exceptions int64 `json:"exceptions"` // chunks
	Extents    int64 `json:"extents"`    // runs of exceptions that are consecutive in the origin and in the store, which no area lies in
	Areas      int64 `json:"areas"`      // of exceptions, the one at the end included, which may be empty
	Used       int64 `json:"used"`       // bytes of the store, header and areas included, as the kernel counts them
	Free       int64 `json:"free"`       // bytes of the store in which the data of more exceptions fits
	End        int64 `json:"end"`        // bytes of an origin that has all of the chunks, the last of them whole
}

// Check reads all exceptions and holds them against the rules of the format: each has a
// data chunk of its own, these are the first ones of the store, and no chunk of the origin
// has two. It returns the first fault unless CheckOptions.Faults is set, and errors of the
// reader. An invalid snapshot is no fault.
func (s *Store) Check(o CheckOptions) (Summary, error) {
	c := checker{s: s, o: o, oldEnd: s.oldEnd(o.OriginSize)}
	areas, err := s.walk(c.add, c.fault)
	if err == nil && c.err == nil {
		err = c.atEnd()
	}
	if err != nil {
		err = fmt.Errorf("snapstore: %w", err)
	}
	c.sum.Areas = areas
	c.sum.Used = min((headerChunks+areas+c.sum.Exceptions)*s.chunk, s.size)
	c.sum.Free = s.room(c.sum.Exceptions)
	return c.sum, errors.Join(c.err, err)
}

// room returns how many bytes the data of exceptions behind the first n can take.
func (s *Store) room(n int64) int64 {
	chunks := max(s.size/s.chunk-headerChunks, 0)
	stride := s.perArea() + 1
	capacity := chunks/stride*s.perArea() + max(chunks%stride-1, 0)
	if capacity > 0 && !s.fits(capacity-1) {
		capacity--
	}
	return max(capacity-n, 0) * s.chunk
}

// oldEnd is the first chunk that an origin of that size does not have.
func (s *Store) oldEnd(size int64) uint64 {
	if size == 0 {
		size = maxOriginBytes
	}
	return uint64(size-1)/uint64(s.chunk) + 1
}

type checker struct {
	s       *Store
	o       CheckOptions
	oldEnd  uint64
	old     numbers
	ordered int64   // the first exceptions, as long as they have the first data chunks in their order
	new     numbers // data chunks of the others
	sum     Summary
	last    Exception
	highest uint64 // data chunk
	at      int64  // of the exception that has it
	err     error  // the first fault, which ends the check
}

// add judges one exception; it reports whether the check goes on.
func (c *checker) add(e Exception, at int64) bool {
	if follows := e.Old == c.last.Old+1 && e.New == c.last.New+1; c.sum.Exceptions == 0 || !follows {
		c.sum.Extents++
	}
	c.sum.Exceptions++
	c.last = e
	if problem := c.problem(e); problem != "" {
		return c.fault(exceptionFault(at, problem))
	}
	c.sum.End = max(c.sum.End, int64(e.Old+1)*c.s.chunk)
	if e.New > c.highest {
		c.highest, c.at = e.New, at
	}
	c.old.add(e.Old)
	if c.new.empty() && e.New == uint64(c.s.data(c.ordered)) {
		c.ordered++
	} else {
		c.new.add(e.New)
	}
	return true
}

func (c *checker) problem(e Exception) string {
	switch {
	case e.New > math.MaxInt64 || !c.s.holds(int64(e.New)):
		return fmt.Sprintf("its data chunk %d lies behind the end of the store, which has %d bytes", e.New, c.s.size)
	case e.New < headerChunks || c.isArea(e.New):
		return fmt.Sprintf("its data chunk %d is one of exceptions", e.New)
	case e.Old >= c.oldEnd && c.o.OriginSize == 0:
		return fmt.Sprintf("no device has a chunk %d", e.Old)
	case e.Old >= c.oldEnd:
		return fmt.Sprintf("chunk %d lies behind the end of the origin, which has %d bytes: the store is of another origin, or that has shrunk", e.Old, c.o.OriginSize)
	case c.ordered > 0 && e.New <= uint64(c.s.data(c.ordered-1)):
		return fmt.Sprintf("its data chunk %d is that of another exception too", e.New)
	}
	return ""
}

func (c *checker) isArea(chunk uint64) bool {
	return (chunk-headerChunks)%uint64(c.s.perArea()+1) == 0
}

// atEnd finds chunks that two exceptions have, and data chunks that none has.
func (c *checker) atEnd() error {
	olds, news := c.old.twice(), c.new.twice()
	if !(olds.IsEmpty() && news.IsEmpty()) {
		if err := c.findTwice(olds, news); err != nil || c.err != nil {
			return err
		}
	}
	if n := c.sum.Exceptions; n > 0 && c.highest > uint64(c.s.data(n-1)) {
		c.fault(exceptionFault(c.at, fmt.Sprintf("its data chunk is %d, and the %d exceptions have no more than %d", c.highest, n, c.s.data(n-1))))
	}
	return nil
}

// findTwice reports the exceptions that have a chunk which one before them has.
func (c *checker) findTwice(olds, news *roaring64.Bitmap) error {
	firstOld, firstNew := roaring64.New(), roaring64.New()
	each := func(e Exception, at int64) bool {
		if olds.Contains(e.Old) && !firstOld.CheckedAdd(e.Old) {
			return c.fault(exceptionFault(at, fmt.Sprintf("chunk %d of the origin has another exception too", e.Old)))
		}
		if news.Contains(e.New) && !firstNew.CheckedAdd(e.New) {
			return c.fault(exceptionFault(at, fmt.Sprintf("its data chunk %d is that of another exception too", e.New)))
		}
		return true
	}
	_, err := c.s.walk(each, func(*Fault) bool { return true }) // told before
	return err
}

// fault tells one fault; it reports whether the check goes on.
func (c *checker) fault(f *Fault) bool {
	if c.o.Faults != nil {
		c.o.Faults(f)
		return true
	}
	c.err = f
	return false
}
