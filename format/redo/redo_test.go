package redo

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"tidemark/extent"
)

// memory is a file in memory.
type memory struct{ b []byte }

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if end := int(off) + len(p); end > len(m.b) {
		m.b = append(m.b, make([]byte, end-len(m.b))...)
	}
	return copy(m.b[off:], p), nil
}

// change is what a test puts into a journal: zeros where data is nil.
type change struct {
	off  int64
	data []byte
	len  int64
}

func write(t testing.TB, before, after int64, changes ...change) []byte {
	t.Helper()
	var m memory
	w := NewWriter(&m)
	for _, c := range changes {
		var err error
		if c.data == nil {
			err = w.Zero(extent.Extent{Off: c.off, Len: c.len})
		} else {
			err = w.Data(c.off, c.data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Seal(before, after); err != nil {
		t.Fatal(err)
	}
	if w.Len() != int64(len(m.b)) {
		t.Fatalf("length %d, wrote %d bytes", w.Len(), len(m.b))
	}
	return m.b
}

// apply does to target what the journal says.
func apply(b, target []byte) ([]byte, Header, error) {
	j, err := NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil, Header{}, err
	}
	if err := j.Verify(nil); err != nil {
		return nil, j.Header, err
	}
	out := make([]byte, j.After)
	copy(out, target)
	err = j.Each(func(e Entry) error {
		if e.Zero() {
			clear(out[e.Off:e.End()])
		} else {
			copy(out[e.Off:e.End()], b[e.At:e.At+e.Len])
		}
		return nil
	})
	return out, j.Header, err
}

// TestTheFormatIsWhatThePackageCommentSays reads an annotated hex dump, and
// writes the same bytes.
func TestTheFormatIsWhatThePackageCommentSays(t *testing.T) {
	dump, err := os.ReadFile("testdata/journal.hex")
	if err != nil {
		t.Fatal(err)
	}
	want := unhex(t, string(dump))
	got := write(t, 8192, 8200, change{off: 4096, data: []byte("tide")}, change{off: 8192, len: 8})
	m := memory{got}
	j, err := NewReader(bytes.NewReader(got), int64(len(got)))
	if err != nil || j.Target != (Digest{}) {
		t.Fatalf("%x, %v", j.Target, err)
	}
	w := Writer{w: &m, head: j.Header}
	if err := w.Bind(Digest([]byte("a target and when it was written"))); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s\nwant\n%s", hex.Dump(got), hex.Dump(want))
	}
	out, h, err := apply(want, bytes.Repeat([]byte{1}, 8192))
	if err != nil || h.Before != 8192 || h.After != 8200 || h.Entries != 2 || string(h.Target[:]) != "a target and when it was written" {
		t.Fatalf("%+v, %v", h, err)
	}
	if !bytes.Equal(out[4096:4101], []byte("tide\x01")) || !bytes.Equal(out[8192:], make([]byte, 8)) {
		t.Errorf("% x", out[4090:])
	}
}

// TestVersion1IsRead takes a journal from before a target was written down in it.
func TestVersion1IsRead(t *testing.T) {
	dump, err := os.ReadFile("testdata/journal1.hex")
	if err != nil {
		t.Fatal(err)
	}
	out, h, err := apply(unhex(t, string(dump)), bytes.Repeat([]byte{1}, 8192))
	if err != nil || h.Target != (Digest{}) || !bytes.Equal(out[4096:4101], []byte("tide\x01")) {
		t.Errorf("%+v, %v", h, err)
	}
}

// unhex reads lines of hexadecimal bytes; "*N" is N zeros, "#" begins a comment.
func unhex(t *testing.T, text string) []byte {
	var out []byte
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		for word := range strings.FieldsSeq(line) {
			if word[0] == '*' {
				n := 0
				for _, c := range word[1:] {
					n = n*10 + int(c-'0')
				}
				out = append(out, make([]byte, n)...)
				continue
			}
			b, err := hex.DecodeString(word)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, b...)
		}
	}
	return out
}

func TestWhatWasWrittenIsRead(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 40 {
		size := int64(rng.IntN(12 << 20))
		target := make([]byte, size)
		for i := range target {
			target[i] = byte(i)
		}
		want := append([]byte(nil), target...)
		var changes []change
		most := 1 << rng.IntN(24)
		for at := int64(0); at < size; {
			at += int64(rng.IntN(1 + most/2))
			n := min(int64(rng.IntN(most)+1), size-at)
			if n <= 0 {
				break
			}
			c := change{off: at, len: n}
			if rng.IntN(3) > 0 {
				c.data = make([]byte, n)
				for i := range c.data {
					c.data[i] = byte(rng.Uint32())
				}
				copy(want[at:], c.data)
			} else {
				clear(want[at : at+n])
			}
			changes = append(changes, c)
			at += n
			if len(changes) > 3*maxEntries {
				break
			}
		}
		got, _, err := apply(write(t, size, size, changes...), target)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("seed %d, %d changes: %v", seed, len(changes), err)
		}
	}
}

// TestDataKeepsItsPlaceInAPage is what sharing blocks and direct I/O rest on.
func TestDataKeepsItsPlaceInAPage(t *testing.T) {
	b := write(t, 1<<30, 1<<30,
		change{off: 512, data: make([]byte, 100)}, change{off: 4096, data: make([]byte, 5<<20)},
		change{off: 16 << 20, data: make([]byte, 8192)}, change{off: 17<<20 + 5, data: make([]byte, 8192)})
	j, err := NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Each(func(e Entry) error {
		if (e.At-e.Off)%align != 0 {
			t.Errorf("%v lies at %d", e.Extent, e.At)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if j.Entries != 5 {
		t.Errorf("%d entries, want 5: data of more than %d bytes is cut", j.Entries, maxData)
	}
}

func TestEveryDamageIsNoticed(t *testing.T) {
	good := write(t, 1<<20, 1<<20, changes()...)
	want, _, err := apply(good, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range good {
		bad := append([]byte(nil), good...)
		bad[i] ^= 0x10
		got, _, err := apply(bad, nil)
		switch {
		case err == nil && !bytes.Equal(got, want):
			t.Fatalf("byte %d: not noticed", i)
		case err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNotOurs) && (i < 8 || i >= 12 || !errors.Is(err, ErrNewer)):
			t.Fatalf("byte %d: error of no class: %v", i, err)
		}
	}
	for n := range good {
		if _, _, err := apply(good[:n], nil); !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNotOurs) {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
	if _, _, err := apply(append(good, 0), nil); !errors.Is(err, ErrDamaged) {
		t.Errorf("a byte too many: %v", err)
	}
}

// TestANewerVersionIsNotDamaged takes one whose checksum nobody here can find.
func TestANewerVersionIsNotDamaged(t *testing.T) {
	for v, want := range map[uint32]error{0: ErrDamaged, 1: ErrDamaged, version + 1: ErrNewer, 1 << 31: ErrNewer} {
		b := write(t, 1, 1, change{off: 0, data: []byte("x")})
		binary.LittleEndian.PutUint32(b[8:], v)
		if _, err := NewReader(bytes.NewReader(b), int64(len(b))); !errors.Is(err, want) {
			t.Errorf("version %d: %v, want %v", v, err, want)
		}
	}
}

// edit changes entries of the first table of a journal, whose checksums stay right.
func edit(b []byte, change func(entries []byte)) []byte {
	table := b[binary.LittleEndian.Uint64(b[32:]):]
	n := int(binary.LittleEndian.Uint32(table[16:]))
	change(table[tableHead : tableHead+n*entrySize])
	binary.LittleEndian.PutUint32(table[20:], tableSum(table[:tableHead+n*entrySize]))
	return b
}

// TestDataIsInTheOrderOfTheTarget is what lets a reader take several at once.
func TestDataIsInTheOrderOfTheTarget(t *testing.T) {
	const first, last = 0, 2 * entrySize // entries; zeros are between them
	at := func(b []byte, entry int) *[8]byte { return (*[8]byte)(b[entry+16:]) }
	for name, change := range map[string]func(b []byte){
		"swapped": func(b []byte) {
			was, first, last := *at(b, first), at(b, first), at(b, last)
			*first, *last = *last, was
		},
		"the same":    func(b []byte) { *at(b, last) = *at(b, first) },
		"overlapping": func(b []byte) { *at(b, last) = *at(b, first); b[last+16] += 2 },
		"unchanged":   func([]byte) {},
	} {
		b := edit(write(t, 1<<20, 1<<20, changes()...), change)
		_, err := NewReader(bytes.NewReader(b), int64(len(b)))
		if errors.Is(err, ErrDamaged) == (name == "unchanged") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// changes are two of data with zeros between them.
func changes() []change {
	return []change{{off: 0, data: []byte("abc")}, {off: 4096, len: 4096}, {off: 9000, data: []byte("def")}}
}

func TestWriterRefusesToGoBack(t *testing.T) {
	w := NewWriter(&memory{})
	if err := w.Data(4096, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := w.Data(4096, []byte("x")); err == nil {
		t.Error("an overlap was taken")
	}
	if err := w.Seal(1, 1); err == nil {
		t.Error("sealed after an error")
	}
}

// full is a disk with room for n bytes.
type full struct {
	memory
	n int64
}

var errFull = errors.New("no space left on device")

func (f *full) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.n {
		return 0, errFull
	}
	return f.memory.WriteAt(p, off)
}

func TestEveryFailedWriteIsReported(t *testing.T) {
	for n := range int64(6) {
		w := NewWriter(&full{n: n * align})
		err := w.Data(0, bytes.Repeat([]byte{7}, 4*align))
		if err == nil {
			err = w.Seal(1<<20, 1<<20)
		}
		if !errors.Is(err, errFull) {
			t.Errorf("room for %d bytes: %v", n*align, err)
		}
	}
}

func FuzzJournal(f *testing.F) {
	f.Add(write(f, 1<<20, 1<<20, change{off: 0, data: []byte("abc")}, change{off: 4096, len: 4096}))
	f.Add(write(f, 0, 0))
	f.Fuzz(func(t *testing.T, in []byte) {
		j, err := NewReader(bytes.NewReader(in), int64(len(in)))
		if err == nil {
			err = j.Verify(nil)
		}
		if err != nil {
			if !errors.Is(err, ErrNotOurs) && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) {
				t.Fatalf("error of no class: %v", err)
			}
			return
		}
		ordered(t, j)
	})
}

// FuzzEntries gives a journal with right checksums any entries, and data of zeros.
func FuzzEntries(f *testing.F) {
	good := write(f, 1<<20, 1<<20, changes()...)
	edit(good, func(b []byte) { f.Add(b) })
	f.Fuzz(func(t *testing.T, in []byte) {
		n := min(len(in)/entrySize, maxEntries)
		if n == 0 {
			return
		}
		var m memory
		w := NewWriter(&m)
		if err := w.write(make([]byte, 3*align)); err != nil {
			t.Fatal(err)
		}
		for i := range n {
			w.entries = append(w.entries, decodeEntry(in[i*entrySize:]))
		}
		if err := w.Seal(1<<20, 1<<20); err != nil {
			t.Fatal(err)
		}
		j, err := NewReader(bytes.NewReader(m.b), int64(len(m.b)))
		if err == nil {
			ordered(t, j)
		} else if !errors.Is(err, ErrDamaged) {
			t.Fatalf("error of no class: %v", err)
		}
	})
}

// ordered fails unless all that was accepted is inside and in order.
func ordered(t *testing.T, j *Reader) {
	t.Helper()
	prev, data := int64(0), int64(align)
	if err := j.Each(func(e Entry) error {
		if e.Off < prev || e.End() > j.After || !e.Zero() && (e.At < data || e.At+e.Len > j.Size()) {
			t.Fatalf("%+v accepted", e)
		}
		prev = e.End()
		if !e.Zero() {
			data = e.At + e.Len
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
