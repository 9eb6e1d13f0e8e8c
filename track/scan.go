package track

import (
	"context"

	"tidemark/extent"
)

const (
	scanMark = Mark(KindScan)
	// scanBlock is the unit in which a scan compares, as a Live's smallest.
	scanBlock = 4096
)

// Scan is the tracker of a source that nobody watched: nothing is known to be
// unchanged. Right for any source, an image file included; never fast.
type Scan struct{ size int64 }

// NewScan returns the tracker of a source of size bytes.
func NewScan(size int64) *Scan { return &Scan{size: size} }

// Kind returns "scan".
func (s *Scan) Kind() string { return KindScan }

// Granularity returns 4096.
func (s *Scan) Granularity() int64 { return scanBlock }

// Cut returns a mark from which nothing can be told later.
func (s *Scan) Cut(context.Context) (Cut, error) { return Cut{Mark: scanMark}, nil }

// Changes returns the whole source when since is empty. Every other mark is
// lost.
func (s *Scan) Changes(_ context.Context, since, _ Mark) (extent.Set, error) {
	if since != "" {
		return extent.Set{}, &LostError{Mark: since, Reason: "the source is not tracked, only compared"}
	}
	return extent.NewSet(extent.Extent{Len: s.size}), nil
}

// Traits say that changes cannot be named.
func (s *Scan) Traits() Traits { return Traits{} }

// Drain does nothing.
func (s *Scan) Drain(context.Context) error { return nil }

// Persist does nothing.
func (s *Scan) Persist(context.Context) error { return nil }

// Keep does nothing: there is no history.
func (s *Scan) Keep(context.Context, string, Mark, bool) error { return nil }

// Close does nothing.
func (s *Scan) Close() error { return nil }
