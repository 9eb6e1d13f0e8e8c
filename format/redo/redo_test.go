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

// pass is a change that ends a pass.
var pass = change{len: -1}

func write(t testing.TB, before, after int64, changes ...change) []byte {
	t.Helper()
	return seal(t, before, after, nil, changes...)
}

func seal(t testing.TB, before, after int64, blob []byte, changes ...change) []byte {
	t.Helper()
	var m memory
	w := NewWriter(&m)
	for _, c := range changes {
		var err error
		if c.len < 0 {
			w.NextPass()
		} else if c.data == nil {
			err = w.Zero(extent.Extent{Off: c.off, Len: c.len})
		} else {
			err = w.Data(c.off, c.data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Seal(before, after, blob); err != nil {
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
	if err := j.Verify(); err != nil {
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
	got := seal(t, 8192, 8200, []byte("the next state"),
		change{off: 8192, len: 8}, change{off: 4096, data: []byte("tide")}, pass, change{off: 4097, data: []byte("i")})
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
	if err != nil || h.Before != 8192 || h.After != 8200 || h.Entries != 3 || string(h.Target[:]) != "a target and when it was written" {
		t.Fatalf("%+v, %v", h, err)
	}
	if !bytes.Equal(out[4096:4101], []byte("tide\x01")) || !bytes.Equal(out[8192:], make([]byte, 8)) {
		t.Errorf("% x", out[4090:])
	}
	if blob, err := j.Blob(); err != nil || string(blob) != "the next state" {
		t.Errorf("blob %q, %v", blob, err)
	}
}

// TestOlderVersionsAreRead takes journals that an earlier tidemark may have left.
func TestOlderVersionsAreRead(t *testing.T) {
	for _, name := range []string{"journal1.hex", "journal2.hex"} {
		dump, err := os.ReadFile("testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		out, h, err := apply(unhex(t, string(dump)), bytes.Repeat([]byte{1}, 8192))
		if err != nil || h.Target != (Digest{}) || !bytes.Equal(out[4096:4101], []byte("tide\x01")) {
			t.Errorf("%s: %+v, %v", name, h, err)
		}
	}
	for magic, want := range map[string]error{"TMJRNL\r\n": ErrOldMirror, "TMSUMS\r\n": ErrNotOurs} {
		b := append([]byte(magic), make([]byte, align)...)
		if _, err := NewReader(bytes.NewReader(b), int64(len(b))); !errors.Is(err, want) || !errors.Is(err, ErrNotOurs) {
			t.Errorf("%q: %v", magic, err)
		}
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

// randomPass is a pass over a target of size bytes, in any order, and what it makes of
// the target.
func randomPass(rng *rand.Rand, target []byte) (changes []change) {
	size, most := int64(len(target)), 1<<rng.IntN(24)
	for at := int64(0); at < size && len(changes) < 2*maxEntries; {
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
			copy(target[at:], c.data)
		} else {
			clear(target[at : at+n])
		}
		changes = append(changes, c)
		at += n
	}
	if rng.IntN(2) == 0 {
		rng.Shuffle(len(changes), func(i, k int) { changes[i], changes[k] = changes[k], changes[i] })
	}
	return changes
}

func TestWhatWasWrittenIsRead(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 40 {
		target := make([]byte, rng.IntN(6<<20))
		for i := range target {
			target[i] = byte(i)
		}
		want := bytes.Clone(target)
		var changes []change
		for range 1 + rng.IntN(3) {
			changes = append(append(changes, pass), randomPass(rng, want)...)
		}
		size := int64(len(target))
		got, _, err := apply(write(t, size, size, changes...), target)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("seed %d, %d changes: %v", seed, len(changes), err)
		}
	}
}

// TestDataKeepsItsPlaceInAPage is what sharing blocks and direct I/O rest on.
func TestDataKeepsItsPlaceInAPage(t *testing.T) {
	b := write(t, 1<<30, 1<<30,
		change{off: 512, data: make([]byte, 100)}, change{off: 4096, data: make([]byte, 17<<20)},
		change{off: 20 << 20, data: make([]byte, 8192)}, change{off: 21<<20 + 5, data: make([]byte, 8192)})
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
	good := seal(t, 1<<20, 1<<20, []byte("blob"), changes()...)
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

// TestEntriesThatContradictEachOtherAreRefused: the data of an entry lies behind that of
// the one before, which lets a reader take several at once; entries of a pass do not
// overlap, and passes ascend.
func TestEntriesThatContradictEachOtherAreRefused(t *testing.T) {
	const first, last = 0, 2 * entrySize // entries; zeros are between them
	at := func(b []byte, entry int) *[8]byte { return (*[8]byte)(b[entry+16:]) }
	for name, change := range map[string]func(b []byte){
		"swapped": func(b []byte) {
			was, first, last := *at(b, first), at(b, first), at(b, last)
			*first, *last = *last, was
		},
		"the same":                     func(b []byte) { *at(b, last) = *at(b, first) },
		"overlapping":                  func(b []byte) { *at(b, last) = *at(b, first); b[last+16] += 2 },
		"overlapping in the target":    func(b []byte) { copy(b[last:last+8], b[first:]) },
		"a pass that comes too late":   func(b []byte) { b[first+28] = 1 },
		"overlapping in a later pass?": func(b []byte) { copy(b[last:last+8], b[first:]); b[last+28] = 1 },
		"unchanged":                    func([]byte) {},
	} {
		b := edit(write(t, 1<<20, 1<<20, changes()...), change)
		_, err := NewReader(bytes.NewReader(b), int64(len(b)))
		if good := name == "unchanged" || strings.HasSuffix(name, "?"); errors.Is(err, ErrDamaged) == good {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// changes are two of data with zeros between them.
func changes() []change {
	return []change{{off: 0, data: []byte("abc")}, {off: 4096, len: 4096}, {off: 9000, data: []byte("def")}}
}

func TestALargeBlobIsRefused(t *testing.T) {
	w := NewWriter(&memory{})
	if err := w.Seal(1, 1, make([]byte, MaxBlob+1)); err == nil {
		t.Error("a blob of any size was taken")
	}
	if err := w.Bind(Digest{}); err == nil {
		t.Error("bound after an error")
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
			err = w.Seal(1<<20, 1<<20, nil)
		}
		if !errors.Is(err, errFull) {
			t.Errorf("room for %d bytes: %v", n*align, err)
		}
	}
}

// FuzzJournal takes its input for a journal, and then for the entries of one whose
// checksums are right and whose data is zeros.
func FuzzJournal(f *testing.F) {
	f.Add(seal(f, 1<<20, 1<<20, []byte("blob"), change{off: 0, data: []byte("abc")}, pass, change{off: 0, len: 4096}))
	f.Add(write(f, 0, 0))
	edit(write(f, 1<<20, 1<<20, changes()...), func(b []byte) { f.Add(b) })
	f.Fuzz(func(t *testing.T, in []byte) {
		accepted(t, in)
		var m memory
		w := NewWriter(&m)
		err := w.write(make([]byte, 3*align))
		for i := range min(len(in)/entrySize, maxEntries) {
			w.entries = append(w.entries, decodeEntry(in[i*entrySize:]))
		}
		if err = errors.Join(err, w.Seal(1<<20, 1<<20, nil)); err != nil {
			t.Fatal(err)
		}
		accepted(t, m.b)
	})
}

// accepted fails unless a journal is refused with an error of a class, or all of it is
// inside and in order.
func accepted(t *testing.T, in []byte) {
	t.Helper()
	j, err := NewReader(bytes.NewReader(in), int64(len(in)))
	if err == nil {
		err = j.Verify()
	}
	if err != nil {
		if !errors.Is(err, ErrNotOurs) && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) {
			t.Fatalf("error of no class: %v", err)
		}
		return
	}
	data, pass := int64(align), uint32(0)
	var done extent.Set
	if err := j.Each(func(e Entry) error {
		if e.Pass > pass {
			pass, done = e.Pass, extent.Set{}
		}
		this := extent.NewSet(e.Extent)
		if e.Pass != pass || e.End() > j.After || !done.Intersect(this).Empty() || !e.Zero() && (e.At < data || e.At+e.Len > j.Size()) {
			t.Fatalf("%+v accepted", e)
		}
		if done = done.Union(this); !e.Zero() {
			data = e.At + e.Len
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
