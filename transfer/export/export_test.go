package export_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"tidemark/extent"
	"tidemark/format/erastream"
	"tidemark/transfer/export"
)

func noise(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

func TestTheStreamHoldsTheExtentsInOrder(t *testing.T) {
	src := noise(9 << 20)
	set := extent.NewSet(extent.Extent{Off: 0, Len: 512}, extent.Extent{Off: 4096, Len: 5 << 20}, extent.Extent{Off: 8<<20 + 1, Len: 1<<20 - 1})
	var out bytes.Buffer
	told := int64(0)
	rep, err := export.Write(context.Background(), &out, bytes.NewReader(src), set, func(n int64) { told = n })
	if err != nil || rep.Records != 3 || rep.Bytes != set.Bytes() || told != set.Bytes() {
		t.Fatalf("%+v, told %d, %v", rep, told, err)
	}
	in := erastream.NewReader(&out, int64(len(src)))
	for _, e := range set.Extents() {
		rec, err := in.Next()
		if err != nil || rec != (erastream.Record{Off: e.Off, Len: e.Len}) {
			t.Fatalf("%v, %v, want %v", rec, err, e)
		}
		data, err := io.ReadAll(in)
		if err != nil || !bytes.Equal(data, src[e.Off:e.End()]) {
			t.Fatalf("%v: other data (%v)", e, err)
		}
	}
	if _, err := in.Next(); err != io.EOF {
		t.Errorf("%v, want the end", err)
	}
}

func TestASourceThatEndsLeavesNoWholeStream(t *testing.T) {
	src := noise(3 << 20)
	set := extent.NewSet(extent.Extent{Len: 1 << 20}, extent.Extent{Off: 2 << 20, Len: 4 << 20})
	var out bytes.Buffer
	_, err := export.Write(context.Background(), &out, bytes.NewReader(src), set, nil)
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("%v, want unexpected EOF", err)
	}
	in := erastream.NewReader(&out, -1)
	for err = nil; err == nil; {
		_, err = in.Next()
	}
	if !errors.Is(err, erastream.ErrDamaged) {
		t.Errorf("the stream reads as %v", err)
	}
}

// failing reads until it gets to an offset.
type failing struct {
	io.ReaderAt
	at  int64
	err error
}

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if off >= f.at {
		return 0, f.err
	}
	return f.ReaderAt.ReadAt(p, off)
}

func TestErrorsOfBothEndsComeBack(t *testing.T) {
	src := noise(8 << 20)
	set := extent.NewSet(extent.Extent{Len: 8 << 20})
	broken := errors.New("broken")
	if _, err := export.Write(context.Background(), io.Discard, failing{bytes.NewReader(src), 5 << 20, broken}, set, nil); !errors.Is(err, broken) {
		t.Errorf("source: %v", err)
	}
	if _, err := export.Write(context.Background(), errWriter{broken}, bytes.NewReader(src), set, nil); !errors.Is(err, broken) {
		t.Errorf("writer: %v", err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(broken)
	if _, err := export.Write(ctx, io.Discard, bytes.NewReader(src), set, nil); !errors.Is(err, broken) {
		t.Errorf("context: %v", err)
	}
}

type errWriter struct{ err error }

func (w errWriter) Write([]byte) (int, error) { return 0, w.err }
