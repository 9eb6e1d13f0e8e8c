package pairs

import (
	"bytes"
	"fmt"
	"io"
	"slices"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/linux/mounts"
	"tidemark/transfer/target"
	"tidemark/transfer/traces"
)

const (
	// samplePlaces is how many places of a target are compared to find out whether it is
	// an older copy of its source, and as many of what an image holds outside its holes.
	samplePlaces = 2048
	// samplePiece is how much is compared at each, in bytes.
	samplePiece = 4096
)

// sample is what a comparison of a source with a target has found.
type sample struct{ same, of int } // places, of those that are not zeros in both

func (s sample) String() string {
	return fmt.Sprintf("%d of %d places that were compared, zeros left out, hold the same", s.same, s.of)
}

// adopt refuses a target, for the reason why, unless it is mostly the same as its source.
// It reads, and writes nothing.
func (t *goal) adopt(src *block.Device, why error) error {
	if t.sampled != nil {
		return nil // it was asked before the target was locked or opened
	}
	fits := t.Size <= src.Size() || t.Device // the end of a larger image would be cut off
	if t.empty() || !fits || t.state.Complete && t.state.Size > src.Size() {
		return why
	}
	if err := t.refuseOtherFilesystem(src); err != nil {
		return err
	}
	s, err := t.compare(src)
	if err != nil {
		return fmt.Errorf("target: %w", err)
	}
	if s.of == 0 || 2*s.same < s.of {
		return t.Refused(target.ErrHoldsOther, "%s as in %s: it is no older copy of it", s, src.Path())
	}
	t.sampled = &s
	return nil
}

// refuseOtherFilesystem refuses a target in which another filesystem lies where one of the
// source does: two that were just made look much the same.
func (t *goal) refuseOtherFilesystem(src *block.Device) error {
	d, err := block.Open(t.Path, block.Options{Direct: true})
	if err != nil {
		return fmt.Errorf("target: %w", err)
	}
	defer d.Close()
	ours, err := filesystems(src, src.Size())
	if err != nil {
		return fmt.Errorf("source: %s: %w", src.Path(), err)
	}
	theirs, err := filesystems(d, d.Size())
	if err != nil {
		return fmt.Errorf("target: %s: %w", t.Path, err)
	}
	for at, is := range theirs {
		if want, ok := ours[at]; ok && want != is {
			return t.Refused(target.ErrHoldsOther, "at byte %d it has %s, and %s has %s: it is no older copy of it", at, is, src.Path(), want)
		}
	}
	return nil
}

// filesystems names those of a device and of its partitions, by where they begin.
func filesystems(r io.ReaderAt, size int64) (map[int64]string, error) {
	places, err := traces.Partitions(r, size)
	if err != nil {
		return nil, err
	}
	found := map[int64]string{}
	for _, p := range append(places, traces.Trace{Extent: extent.Extent{Len: size}}) {
		sb, err := mounts.ReadSuperblock(io.NewSectionReader(r, p.Off, p.Len), p.Len)
		if err != nil {
			return nil, err
		}
		if sb.UUID != "" {
			found[p.Off] = fmt.Sprintf("%s filesystem %s", sb.Type, sb.UUID)
		}
	}
	return found, nil
}

// compare compares places that are spread evenly over a target and its source, as far as
// both go: a source may have grown.
func (t *goal) compare(src *block.Device) (s sample, err error) {
	d, err := block.Open(t.Path, block.Options{Direct: true})
	if err != nil {
		return s, err
	}
	defer d.Close()
	whole := extent.Extent{Len: min(src.Size(), t.Size)}
	data, err := d.Data(whole)
	if err != nil {
		return s, err
	}
	places := append(spread(extent.NewSet(whole), samplePlaces), spread(data, samplePlaces)...)
	slices.Sort(places)
	a, b := block.AlignedBuffer(samplePiece), block.AlignedBuffer(samplePiece)
	for _, at := range slices.Compact(places) {
		n := min(samplePiece, whole.Len-at)
		if _, err := src.ReadAt(a[:n], at); err != nil {
			return s, fmt.Errorf("compare: %s at byte %d: %w", src.Path(), at, err)
		}
		if _, err := d.ReadAt(b[:n], at); err != nil {
			return s, fmt.Errorf("compare: %s at byte %d: %w", t.Path, at, err)
		}
		if block.IsZero(a[:n]) && block.IsZero(b[:n]) {
			continue
		}
		if s.of++; bytes.Equal(a[:n], b[:n]) {
			s.same++
		}
	}
	return s, nil
}

// spread returns n places, or as many as there are, at even distances within a set.
func spread(set extent.Set, n int64) []int64 {
	var places []int64
	step := max(samplePiece, set.Bytes()/n)
	next, passed := int64(0), int64(0)
	for _, e := range set.Extents() {
		for ; next < passed+e.Len; next += step {
			places = append(places, (e.Off+next-passed)/samplePiece*samplePiece)
		}
		passed += e.Len
	}
	return places
}
