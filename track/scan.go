package track

import (
	"context"

	"tidemark/extent"
)

const (
	// KindScan is the kind of a Scan.
	KindScan = "scan"
	scanMark = Mark(KindScan)
	// scanBlock is the unit in which a scan compares, the smallest of all trackers.
	scanBlock = 4096
)

// Scan is the tracker of a source that no backend follows: nothing is known to be
// unchanged. It is right for any source, an image file included, and never fast.
type Scan struct{ size int64 }

// NewScan returns the tracker of a source of size bytes.
func NewScan(size int64) *Scan { return &Scan{size: size} }

// Kind returns "scan".
func (s *Scan) Kind() string { return KindScan }

// Granularity returns 4096.
func (s *Scan) Granularity() int64 { return scanBlock }

// Traits returns none.
func (s *Scan) Traits() Traits { return Traits{} }

// Cut returns a mark from which nothing can be told later.
func (s *Scan) Cut(context.Context) (Cut, error) { return Cut{Mark: scanMark}, nil }

// Changes returns the whole source when since is empty. Every other mark is lost.
func (s *Scan) Changes(ctx context.Context, since, _ Mark) (extent.Set, error) {
	if err := s.Vouch(ctx, since); err != nil {
		return extent.Set{}, err
	}
	return extent.NewSet(extent.Extent{Len: s.size}), nil
}

// Vouch returns nil for the empty mark. Every other mark is lost.
func (s *Scan) Vouch(_ context.Context, m Mark) error {
	if m == "" {
		return nil
	}
	return &LostError{Mark: m, Reason: "the source is not tracked, only compared"}
}

// Drain does nothing: Changes names whatever a write in flight changes.
func (s *Scan) Drain(context.Context) error { return nil }

// Persist does nothing.
func (s *Scan) Persist(context.Context) error { return nil }

// Keep does nothing: there is no history.
func (s *Scan) Keep(context.Context, string, Mark, bool) error { return nil }

// Close does nothing.
func (s *Scan) Close() error { return nil }
