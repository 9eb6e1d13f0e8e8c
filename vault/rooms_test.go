package vault

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sync/errgroup"

	"tidemark/extent"
	format "tidemark/format/vault"
)

// Rooms are used again by many readers at once, more of them than there are rooms, and each gets the
// bytes that it asks for.
func TestReadersAtOnceGetTheirBytes(t *testing.T) {
	s, _ := folder(t)
	v := open(t, s, Options{})
	const size = 24 << 20
	want := slices.Concat(noise(1, size/2), bytes.Repeat([]byte("a text that gets smaller"), size/2/24+1))[:size]
	d, err := v.AddDisk(t.Context(), format.Disk{Name: "disk"})
	if err != nil {
		t.Fatal(err)
	}
	var base *Point
	for _, change := range []extent.Set{
		extent.NewSet(extent.Extent{Len: size}),
		extent.NewSet(extent.Extent{Off: 4096, Len: 4096}, extent.Extent{Off: 5 << 20, Len: 12288}, extent.Extent{Off: 20 << 20, Len: 4096}),
	} {
		for _, e := range change.Extents() {
			if base != nil {
				copy(want[e.Off:e.End()], noise(byte(e.Off>>20+7), int(e.Len)))
			}
		}
		w, err := v.Begin(t.Context(), From{Disk: d.ID, Size: size, Base: base})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Copy(bytes.NewReader(want), change); err != nil {
			t.Fatal(err)
		}
		p, err := w.Commit(format.Point{})
		if err = errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		base = &p
	}
	r := v.Reader(t.Context(), *base)
	var g errgroup.Group
	for i := range 2 * segmentsKept {
		g.Go(func() error {
			rng := rand.New(rand.NewPCG(1, uint64(i)))
			for range 50 {
				off := rng.Int64N(size)
				got := make([]byte, min(size-off, 1+rng.Int64N(1<<(8+rng.IntN(12)))))
				if _, err := r.ReadAt(got, off); err != nil {
					return err
				}
				if !bytes.Equal(got, want[off:off+int64(len(got))]) {
					t.Errorf("other bytes at %d+%d", off, len(got))
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

// A segment that could not be read is read anew by the next one who asks.
func TestASegmentThatFailedIsReadAnew(t *testing.T) {
	var c segments
	ref, fault := format.Ref{Segment: 1}, errors.New("not now")
	got := make([]byte, 2)
	if err := c.copy(ref, 1, got, func([]byte) ([]byte, error) { return nil, fault }); !errors.Is(err, fault) {
		t.Error(err)
	}
	if err := c.copy(ref, 1, got, func([]byte) ([]byte, error) { return []byte("abc"), nil }); err != nil || string(got) != "bc" {
		t.Errorf("%q, %v", got, err)
	}
	if err := c.copy(ref, 2, got, nil); !errors.Is(err, format.ErrDamaged) {
		t.Errorf("bytes behind the end of a segment: %v", err)
	}
}

// Chunks of new packs are found while they wait to be written to the cache, and by the next process.
func TestWhatWaitsForTheCacheIsFound(t *testing.T) {
	cache := t.TempDir()
	x, err := openIndex(format.ID{1}, cache, func(text string) { t.Error(text) })
	if err != nil {
		t.Fatal(err)
	}
	var tables []*table
	for pack := range byte(3) {
		made := &table{known: known{format.PackName{ID: format.ID{pack + 1}}, 1000}}
		for n := range uint32(piecesWritten) {
			made.Segments = append(made.Segments, format.Segment{
				Number: n, Kind: format.Chunk, Stored: 20, Plain: 4, Place: 32 + int64(n)*20, Hash: format.Hash{pack + 1, byte(n), byte(n >> 8)},
			})
		}
		tables = append(tables, made)
		if err := x.later(made); err != nil {
			t.Fatal(err)
		}
	}
	look := func() {
		t.Helper()
		for _, made := range tables {
			for _, s := range made.Segments {
				if ref, ok, err := x.find(s.Hash); err != nil || !ok || ref != (format.Ref{Pack: made.name.ID, Segment: s.Number}) {
					t.Fatalf("%v: %v, %v, %v", s.Hash, ref, ok, err)
				}
			}
			if got, err := x.table(made.name.ID); err != nil || got == nil || got.known != made.known || len(got.Segments) != piecesWritten {
				t.Fatalf("%v: %v, %v", made.name, got, err)
			}
		}
	}
	look()
	if err := x.close(); err != nil {
		t.Fatal(err)
	}
	if x, err = openIndex(format.ID{1}, cache, func(text string) { t.Error(text) }); err != nil {
		t.Fatal(err)
	}
	defer x.close()
	look()
}
