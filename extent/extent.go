// Package extent holds the value types that every other package trades in:
// byte ranges of a block device and sets of them.
//
// All offsets and lengths are bytes. An Extent is half-open, [Off, Off+Len).
// A Set is sorted, disjoint and merged, and never changes once it is built, so
// it may be shared freely between goroutines; a Builder belongs to one.
//
// The package refuses nothing at run time but ranges that cannot exist
// (negative, or running past the largest int64); those are our own bugs or
// unchecked input, and Valid tells them apart before a Set is built.
package extent

import (
	"fmt"
	"math"
)

// Extent is the byte range [Off, Off+Len) of a device or an image.
type Extent struct {
	Off int64 // first byte
	Len int64 // bytes; zero is an empty extent
}

// End returns the offset of the first byte behind the extent.
func (e Extent) End() int64 { return e.Off + e.Len }

// Empty reports whether the extent covers no byte.
func (e Extent) Empty() bool { return e.Len <= 0 }

// Valid reports whether the extent starts at or after zero, has no negative
// length and ends within the range of an int64.
func (e Extent) Valid() bool {
	return e.Off >= 0 && e.Len >= 0 && e.Off <= math.MaxInt64-e.Len
}

// Intersect returns the part of e that lies in f; it is empty when they do not
// meet.
func (e Extent) Intersect(f Extent) Extent {
	off, end := max(e.Off, f.Off), min(e.End(), f.End())
	if end <= off {
		return Extent{}
	}
	return Extent{Off: off, Len: end - off}
}

// Align returns the smallest extent that covers e and starts and ends at a
// multiple of block bytes, cut off at limit (the size of the device, whose last
// block may be short).
func (e Extent) Align(block, limit int64) Extent {
	if e.Empty() {
		return Extent{}
	}
	off := e.Off / block * block
	end := limit
	if last := (e.End() - 1) / block; last < limit/block {
		end = (last + 1) * block
	}
	if end <= off {
		return Extent{}
	}
	return Extent{Off: off, Len: end - off}
}

// String prints the extent as offset+length, both in bytes.
func (e Extent) String() string { return fmt.Sprintf("%d+%d", e.Off, e.Len) }
