package erastream

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"math"
	"os"
	"strings"
	"testing"
	"testing/iotest"
)

type piece struct {
	Record
	data string
}

func encode(t testing.TB, pieces ...piece) []byte {
	t.Helper()
	var b bytes.Buffer
	w := NewWriter(&b)
	for _, p := range pieces {
		if err := w.Copy(p.Record, strings.NewReader(p.data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func decode(r io.Reader, size int64) (pieces []piece, err error) {
	s := NewReader(r, size)
	for {
		rec, err := s.Next()
		if err == io.EOF {
			return pieces, nil
		}
		if err != nil {
			return pieces, err
		}
		data, err := io.ReadAll(s)
		if err != nil {
			return pieces, err
		}
		pieces = append(pieces, piece{rec, string(data)})
	}
}

func raw(off, length int64, data string) []byte {
	b := header(nil, off, length)
	return append(b, data...)
}

func header(b []byte, off, length int64) []byte {
	b = append(b, magic...)
	for _, v := range []int64{off, length} {
		for i := range 8 {
			b = append(b, byte(v>>(8*i)))
		}
	}
	return b
}

// TestStreamOfTheOriginal reads a stream as era_copy makes it, an annotated
// hex dump, and writes the same bytes.
func TestStreamOfTheOriginal(t *testing.T) {
	dump, err := os.ReadFile("testdata/stream.hex")
	if err != nil {
		t.Fatal(err)
	}
	var digits strings.Builder
	for line := range strings.Lines(string(dump)) {
		line, _, _ = strings.Cut(line, "#")
		digits.WriteString(strings.Join(strings.Fields(line), ""))
	}
	want, err := hex.DecodeString(digits.String())
	if err != nil {
		t.Fatal(err)
	}
	pieces, err := decode(bytes.NewReader(want), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if len(pieces) != 2 || pieces[0].Record != (Record{131072, 16}) || pieces[1].Record != (Record{196608, 8}) {
		t.Errorf("%v", pieces)
	}
	if got := encode(t, pieces...); !bytes.Equal(got, want) {
		t.Errorf("% x\nwant\n% x", got, want)
	}
}

func TestHeadersMayArriveInPieces(t *testing.T) {
	want := []piece{{Record{0, 3}, "abc"}, {Record{3, 0}, ""}, {Record{10, 2}, "de"}}
	b := encode(t, want...)
	for name, r := range map[string]io.Reader{
		"one byte": iotest.OneByteReader(bytes.NewReader(b)), "half": iotest.HalfReader(bytes.NewReader(b)),
		"data with EOF": iotest.DataErrReader(bytes.NewReader(b)),
	} {
		got, err := decode(r, 12)
		if err != nil || len(got) != 3 || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
			t.Errorf("%s: %v (%v)", name, got, err)
		}
	}
}

func TestNextSkipsUnreadData(t *testing.T) {
	s := NewReader(bytes.NewReader(encode(t, piece{Record{0, 3}, "abc"}, piece{Record{4, 2}, "de"})), -1)
	for range 2 {
		if _, err := s.Next(); err != nil {
			t.Fatal(err)
		}
	}
	if data, err := io.ReadAll(s); err != nil || string(data) != "de" || s.Records() != 2 || s.Bytes() != 5 {
		t.Errorf("%q (%v), %d records, %d bytes", data, err, s.Records(), s.Bytes())
	}
	if _, err := s.Next(); err != io.EOF {
		t.Errorf("%v, want EOF", err)
	}
}

func TestReaderRefuses(t *testing.T) {
	for name, x := range map[string]struct {
		in   []byte
		want error
	}{
		"other file":          {[]byte("<blocks>\n</blocks>\n"), ErrNotStream},
		"short other file":    {[]byte("gz"), ErrNotStream},
		"rest after a record": {append(raw(0, 1, "a"), "xyz"...), ErrDamaged},
		"negative start":      {raw(-1, 1, "a"), ErrDamaged},
		"negative length":     {raw(1, -1, "a"), ErrDamaged},
		"overflow":            {raw(math.MaxInt64, 1, "a"), ErrDamaged},
		"overflow of both":    {raw(math.MaxInt64-1, math.MaxInt64, "a"), ErrDamaged},
		"overlap":             {append(raw(0, 2, "ab"), raw(1, 1, "c")...), ErrDamaged},
		"the same again":      {append(raw(0, 2, "ab"), raw(0, 2, "ab")...), ErrDamaged},
		"descending":          {append(raw(8, 2, "ab"), raw(0, 2, "ab")...), ErrDamaged},
		"past the end":        {raw(99, 2, "ab"), ErrOutOfBounds},
		"far past the end":    {raw(1<<40, 2, "ab"), ErrOutOfBounds},
	} {
		if _, err := decode(bytes.NewReader(x.in), 100); !errors.Is(err, x.want) {
			t.Errorf("%s: %v, want %v", name, err, x.want)
		}
	}
	if got, err := decode(bytes.NewReader(nil), 100); err != nil || len(got) != 0 {
		t.Errorf("empty stream: %v (%v), want nothing", got, err)
	}
}

func TestEveryTruncationIsNoticed(t *testing.T) {
	b := encode(t, piece{Record{0, 3}, "abc"}, piece{Record{4, 2}, "de"})
	for n := range b {
		_, err := decode(bytes.NewReader(b[:n]), -1)
		if n == 0 || n == headerSize+3 {
			if err != nil {
				t.Errorf("cut between records at %d: %v", n, err)
			}
			continue
		}
		if !errors.Is(err, ErrDamaged) || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut at %d: %v, want ErrDamaged", n, err)
		}
	}
}

func TestErrorsStay(t *testing.T) {
	s := NewReader(iotest.TimeoutReader(iotest.OneByteReader(bytes.NewReader(encode(t, piece{Record{0, 3}, "abc"})))), -1)
	for range 2 {
		if _, err := s.Next(); !errors.Is(err, iotest.ErrTimeout) {
			t.Errorf("%v, want the reader's error", err)
		}
	}
}

// failing accepts n bytes.
type failing struct{ n int }

var errFull = errors.New("no space left on device")

func (f *failing) Write(p []byte) (int, error) {
	n := min(len(p), f.n)
	f.n -= n
	if n < len(p) {
		return n, errFull
	}
	return n, nil
}

func TestWriterReportsEveryFailedWrite(t *testing.T) {
	for n := range 2*headerSize + 5 {
		w := NewWriter(&failing{n})
		err := w.Copy(Record{0, 3}, strings.NewReader("abc"))
		if err == nil {
			err = w.Copy(Record{3, 2}, strings.NewReader("de"))
		}
		if !errors.Is(err, errFull) || !errors.Is(w.Close(), errFull) {
			t.Errorf("room for %d bytes: %v", n, err)
		}
	}
}

func TestWriterRefuses(t *testing.T) {
	for name, x := range map[string]struct {
		do   func(w *Writer) error
		want error
	}{
		"short source": {func(w *Writer) error { return w.Copy(Record{0, 9}, strings.NewReader("abc")) }, ErrIncomplete},
		"begin early":  {func(w *Writer) error { return errors.Join(w.Begin(Record{0, 9}), w.Begin(Record{9, 1})) }, ErrIncomplete},
		"close early":  {func(w *Writer) error { return errors.Join(w.Begin(Record{0, 9}), w.Close()) }, ErrIncomplete},
		"too much": {func(w *Writer) error {
			_, err := w.Write([]byte("abcd"))
			return err
		}, ErrIncomplete},
		"overlap":  {func(w *Writer) error { return errors.Join(w.Begin(Record{5, 0}), w.Begin(Record{4, 1})) }, ErrDamaged},
		"overflow": {func(w *Writer) error { return w.Begin(Record{math.MaxInt64, 1}) }, ErrDamaged},
		"negative": {func(w *Writer) error { return w.Begin(Record{-4, 1}) }, ErrDamaged},
	} {
		w := NewWriter(io.Discard)
		if err := x.do(w); !errors.Is(err, x.want) || !errors.Is(w.Close(), x.want) {
			t.Errorf("%s: %v, want %v", name, err, x.want)
		}
	}
}

func FuzzStream(f *testing.F) {
	f.Add(encode(f, piece{Record{0, 3}, "abc"}, piece{Record{3, 0}, ""}, piece{Record{10, 2}, "de"}), int64(20))
	f.Add(raw(-1, 1, "a"), int64(-1))
	f.Fuzz(func(t *testing.T, in []byte, size int64) {
		pieces, err := decode(bytes.NewReader(in), size)
		if err != nil {
			if !errors.Is(err, ErrNotStream) && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrOutOfBounds) {
				t.Fatalf("error of no class: %v", err)
			}
			return
		}
		for i, p := range pieces {
			if size >= 0 && p.End() > size || i > 0 && p.Off < pieces[i-1].End() {
				t.Fatalf("%v accepted", p)
			}
		}
		if got := encode(t, pieces...); !bytes.Equal(got, in) {
			t.Fatalf("% x\nwant\n% x", got, in)
		}
	})
}
