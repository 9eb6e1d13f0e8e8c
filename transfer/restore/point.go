package restore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/format/state"
	format "tidemark/format/vault"
	"tidemark/track"
	"tidemark/transfer/origin"
	"tidemark/vault"
	"tidemark/words"
)

// ErrRange says that a part that was asked for does not lie in a point.
var ErrRange = errors.New("no part of the point")

// Point is a point of a vault that is restored.
type Point struct {
	Vault   *vault.Vault
	Address string // of the vault, for messages
	Disk    vault.Disk
	Point   vault.Point
	// Range is the part of it that is restored, as a disk of its own. Empty: all of it.
	Range extent.Extent
}

// RestorePoint is to a point of a vault what Restore is to an image. Every piece is held against
// its seal as it is read. When the target is the disk that the point is of, only what differs is
// written: its tracker says what was written since the newest point, and the maps of both say
// where that differs from this one. Any other target becomes a mirror of that disk, where its tracking
// vouches for the mark of the point.
func RestorePoint(ctx context.Context, p Point, path string, o Options) (Result, error) {
	r := newRestoration(o, Result{Source: p.Address, Target: path, Point: p.Point.Name.ID.String(), Of: p.Disk.Name, Time: p.Point.Moment})
	r.point = &p
	return r.run(ctx)
}

// openPoint makes the point the copy that is restored.
func (r *restoration) openPoint(ctx context.Context) error {
	p := r.point
	part := p.Range
	if part == (extent.Extent{}) {
		part.Len = p.Point.Size
	}
	if !part.Valid() || part.Empty() || part.End() > p.Point.Size {
		return fmt.Errorf("%s: %w: bytes %d to %d of %s", p.Address, ErrRange, part.Off, part.End(), words.Exactly(p.Point.Size))
	}
	c := &sealed{r: p.Vault.Reader(ctx, p.Point), part: part}
	// Another part of it is another copy.
	id := state.ID(p.Point.Name.ID)
	binary.LittleEndian.PutUint64(id[:], binary.LittleEndian.Uint64(id[:])^uint64(part.Off))
	binary.LittleEndian.PutUint64(id[8:], binary.LittleEndian.Uint64(id[8:])^uint64(part.Len))
	r.copy = kept{Image: c, Sums: c, Sealed: true, State: state.State{
		ID: id, Update: 1, Size: part.Len, BlockSize: state.MinBlock, Time: p.Point.Moment,
		Source: state.Source{Path: fmt.Sprintf("%s of %s", p.Disk.Name, p.Address)},
	}}
	r.rep.Size = part.Len
	return nil
}

// isOrigin reports whether the target is what the copy is of.
func (r *restoration) isOrigin() bool {
	is := origin.Of(r.to.Path, r.to.ID)
	if r.point == nil {
		return r.copy.Sums != nil && origin.Same(r.copy.State.Source, is)
	}
	known := is.Stable
	if known == "" {
		known = "image=" + is.Path
	}
	host, err := os.Hostname()
	return err == nil && r.point.Range.Empty() && r.point.Disk.Host == host && slices.Contains(r.point.Disk.KnownBy, known)
}

// since returns a mark of the target's tracker, and what differs between the copy and what the
// target held then; "" where there is none.
func (r *restoration) since(ctx context.Context) (track.Mark, extent.Set, error) {
	if r.point == nil {
		return track.Mark(r.copy.State.Mark), extent.Set{}, nil
	}
	newest, err := r.point.Vault.Newest(ctx, r.point.Disk.ID)
	if err != nil || newest == nil {
		return "", extent.Set{}, err
	}
	set, err := r.point.Vault.Diff(ctx, *newest, r.point.Point)
	return track.Mark(newest.Mark), set, err
}

// sealed is a part of a point, as a copy that can be trusted where it can be read.
type sealed struct {
	r    *vault.Reader
	part extent.Extent
	bufs sync.Pool
}

func (s *sealed) Size() int64                 { return s.part.Len }
func (s *sealed) CurrentSize() (int64, error) { return s.part.Len, nil }

// ReadAt implements io.ReaderAt.
func (s *sealed) ReadAt(p []byte, off int64) (int, error) {
	return io.NewSectionReader(s.r, s.part.Off, s.part.Len).ReadAt(p, off)
}

// Data returns the parts of e that may hold anything but zeros.
func (s *sealed) Data(e extent.Extent) (extent.Set, error) {
	set, err := s.r.Data(extent.Extent{Off: e.Off + s.part.Off, Len: e.Len})
	var b extent.Builder
	for _, d := range set.Extents() {
		b.Add(extent.Extent{Off: d.Off - s.part.Off, Len: d.Len})
	}
	return b.Set(), err
}

// Wrong returns the blocks of e that are not what the point has there when data is their content;
// nil stands for zeros.
func (s *sealed) Wrong(e extent.Extent, data []byte) (all []extent.Extent, err error) {
	buf, _ := s.bufs.Get().(*[]byte)
	if buf == nil || int64(len(*buf)) < e.Len {
		buf = new(make([]byte, e.Len))
	}
	defer s.bufs.Put(buf)
	want := (*buf)[:e.Len]
	if _, err := s.ReadAt(want, e.Off); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	for at := int64(0); at < e.Len; at += state.MinBlock {
		end := min(at+state.MinBlock, e.Len)
		same := data != nil && bytes.Equal(want[at:end], data[at:end]) || data == nil && block.IsZero(want[at:end])
		if !same {
			all = append(all, extent.Extent{Off: e.Off + at, Len: end - at})
		}
	}
	return all, nil
}

// gone reports whether an error of reading the copy is about what is stored, so that all else of it
// may be read.
func (s *sealed) gone(err error) bool { return errors.Is(err, format.ErrDamaged) }
