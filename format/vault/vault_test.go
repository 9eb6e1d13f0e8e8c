package vault

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
)

var (
	testID   = ID{0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 1, 2, 3, 4, 5, 6, 7, 8}
	otherID  = ID{0xfe, 0xdc, 0xba, 0x98, 8, 7, 6, 5, 4, 3, 2, 1, 0, 1, 2, 3}
	testSalt = Salt{0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf}
)

func testMaster() Master {
	var m Master
	for i := range m {
		m[i] = byte(i)
	}
	return m
}

func testKeys() *Keys { return NewKeys(testMaster()) }

func testCodec(t testing.TB) *Codec {
	t.Helper()
	c, err := NewCodec()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func testPoint() Point {
	return Point{
		Size: 5 << 20, Moment: time.Date(2026, 11, 27, 10, 0, 0, 250e6, time.UTC), Mark: "bpf:0123456789abcdef:7",
		Root: &Ref{testID, 3}, Run: "r1", Host: "web1", Tracker: "bpf", View: "freeze", Frozen: true,
		Changed: 3, Read: 2, Stored: 1, Tags: []string{"daily", "keep"},
	}
}

func testLeaf() Leaf {
	return Leaf{
		{Off: 0, Len: ChunkSize, Ref: Ref{testID, 7}},
		{Off: ChunkSize, Len: 4096, Ref: Ref{otherID, 2}, At: 8192},
		{Off: LeafSize - 512, Len: 512, Ref: Ref{testID, 6}, At: MaxSegment - 512},
	}
}

func testInner() *Inner {
	return &Inner{0: Ref{testID, 1}, 5: Ref{otherID, 1<<18 - 1}, 1023: Ref{testID, 0}}
}

// testPack has a segment of each kind, and one that is squeezed.
func testPack(c *Codec, k *Keys) (*Pack, [][]byte) {
	chunk := []byte("a chunk at the end of a disk")
	plains := [][]byte{chunk, []byte("a run"), bytes.Repeat([]byte("page "), 100)}
	p := k.NewPack(testID, nil)
	p.Add(Segment{Kind: Chunk, Plain: int64(len(chunk)), Hash: k.Hash(chunk)}, chunk)
	p.Add(Segment{Kind: Run, Plain: int64(len(plains[1]))}, plains[1])
	coding, body := c.Squeeze(plains[2], nil)
	p.Add(Segment{Kind: Page, Coding: coding, Plain: int64(len(plains[2]))}, body)
	return p, plains
}

// dump reads an annotated hex dump.
func dump(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile("testdata/" + name + ".hex")
	if err != nil {
		t.Fatal(err)
	}
	var digits strings.Builder
	for line := range strings.Lines(string(text)) {
		code, _, _ := strings.Cut(line, "#")
		digits.WriteString(strings.Join(strings.Fields(code), ""))
	}
	b, err := hex.DecodeString(digits.String())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// examples are the objects whose dumps are in testdata.
func examples(t testing.TB) map[string][]byte {
	t.Helper()
	k, master := testKeys(), testMaster()
	content, err := testPoint().Encode()
	if err != nil {
		t.Fatal(err)
	}
	point, err := k.Seal(PointName{Disk: testID, Time: testPoint().Moment, ID: otherID}.String(), testSalt, content)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := testLeaf().Encode()
	if err != nil {
		t.Fatal(err)
	}
	inner, err := testInner().Encode(1)
	if err != nil {
		t.Fatal(err)
	}
	p := k.NewPack(testID, nil)
	chunk := []byte("a chunk at the end of a disk")
	p.Add(Segment{Kind: Chunk, Plain: int64(len(chunk)), Hash: k.Hash(chunk)}, chunk)
	p.Add(Segment{Kind: Run, Plain: 5}, []byte("a run"))
	return map[string][]byte{
		"vault":  Header{ID: testID}.Encode(),
		"open":   Header{ID: testID, Open: &master}.Encode(),
		"locked": Header{ID: testID, Lock: 30 * 24 * time.Hour}.Encode(),
		"point":  point, "leaf": leaf, "inner": inner,
		"pack": p.End(testSalt),
	}
}

func TestTheDumpsAreWhatIsWritten(t *testing.T) {
	for name, b := range examples(t) {
		if want := dump(t, name); !bytes.Equal(b, want) {
			t.Errorf("%s is now\n%s", name, hex.Dump(b))
		}
	}
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	k, c := testKeys(), testCodec(t)
	all := examples(t)
	for name, lock := range map[string]time.Duration{"vault": 0, "open": 0, "locked": 30 * 24 * time.Hour} {
		h, err := ParseHeader(all[name])
		if err != nil || h.ID != testID || (h.Open != nil) != (name == "open") || h.Lock != lock {
			t.Errorf("%s: %+v, %v", name, h, err)
		}
	}
	name := PointName{Disk: testID, Time: testPoint().Moment.Truncate(time.Second), ID: otherID}
	content, _, err := k.Unseal(name.String(), all["point"])
	if err != nil {
		t.Fatal(err)
	}
	if p, err := ParsePoint(content); err != nil || !reflect.DeepEqual(p, testPoint()) {
		t.Errorf("%+v, %v", p, err)
	}
	if l, err := DecodeLeaf(all["leaf"]); err != nil || !slices.Equal(l, testLeaf()) {
		t.Errorf("%+v, %v", l, err)
	}
	if p, err := DecodeInner(all["inner"], 1); err != nil || *p != *testInner() {
		t.Errorf("%v", err)
	}
	p, plains := testPack(c, k)
	b := p.End(testSalt)
	table := readPack(t, k, b, p.Name())
	for i, s := range table.Segments {
		plain, err := k.Opener(testID).Open(c, s, b[s.Place:s.Place+s.Stored], nil)
		if err != nil || !bytes.Equal(plain, plains[i]) {
			t.Errorf("segment %d: %q, %v", i, plain, err)
		}
	}
}

func readPack(t testing.TB, k *Keys, b []byte, name PackName) *Table {
	t.Helper()
	if got, err := CheckPack(b); err != nil || got != name {
		t.Fatalf("%v, %v", got, err)
	}
	table, err := k.ReadTable(bytes.NewReader(b), int64(len(b)), name)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// A pack is written anew without a segment; the others keep number and bytes.
func TestANewGenerationKeepsNumbersAndBytes(t *testing.T) {
	k, c := testKeys(), testCodec(t)
	p, plains := testPack(c, k)
	b := slices.Clone(p.End(testSalt))
	old := readPack(t, k, b, p.Name())
	p = k.NextGeneration(PackName{testID, 1})
	var kept []Segment
	for _, s := range old.Segments {
		if s.Number != 1 {
			p.Keep(s, b[s.Place:s.Place+s.Stored])
			kept = append(kept, s)
		}
	}
	if want := (PackName{testID, 1}); p.Name() != want {
		t.Fatalf("%v, want %v", p.Name(), want)
	}
	b = p.End(Salt{1})
	if size := GenerationSize(kept); size != int64(len(b)) {
		t.Errorf("%d bytes, %d were foretold", len(b), size)
	}
	table := readPack(t, k, b, p.Name())
	if _, ok := table.Find(1); ok || len(table.Segments) != 2 {
		t.Fatalf("%+v", table.Segments)
	}
	for _, n := range []uint32{0, 2} {
		s, ok := table.Find(n)
		if !ok {
			t.Fatal(n)
		}
		plain, err := k.Opener(testID).Open(c, s, b[s.Place:s.Place+s.Stored], nil)
		if err != nil || !bytes.Equal(plain, plains[n]) {
			t.Errorf("segment %d: %q, %v", n, plain, err)
		}
	}
	if _, err := k.ReadTable(bytes.NewReader(b), int64(len(b)), PackName{ID: testID}); !errors.Is(err, ErrDamaged) {
		t.Errorf("another generation in its place: %v", err)
	}
}

// Each flipped bit of a stored object is noticed, without a key and with one, and each cut.
func TestEveryFlippedBitAndEveryCutIsNoticed(t *testing.T) {
	k, c := testKeys(), testCodec(t)
	name := PointName{Disk: testID, Time: testPoint().Moment, ID: otherID}.String()
	all := examples(t)
	checks := map[string]func(b []byte) error{
		"vault": func(b []byte) error { _, err := ParseHeader(b); return err },
		"open":  func(b []byte) error { _, err := ParseHeader(b); return err },
		"point": CheckSealed,
		"pack":  func(b []byte) error { _, err := CheckPack(b); return err },
	}
	keyed := map[string]func(b []byte) error{
		"point": func(b []byte) error { putSum(b); _, _, err := k.Unseal(name, b); return err },
		"pack":  func(b []byte) error { putSum(b); return openAll(k, c, b) },
	}
	noticed := func(what string, at int, err error) {
		if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNotVault) && !errors.Is(err, ErrNewer) {
			t.Errorf("%s at %d: %v", what, at, err)
		}
	}
	for what, check := range checks {
		b := all[what]
		for n := range b {
			noticed(what+" cut", n, check(b[:n:n]))
		}
		for i := range 8 * len(b) {
			b[i/8] ^= 1 << (i % 8)
			noticed(what, i/8, check(slices.Clone(b)))
			if forged := keyed[what]; forged != nil && i/8 < len(b)-sumSize {
				noticed(what+" with a good checksum", i/8, forged(slices.Clone(b)))
			}
			b[i/8] ^= 1 << (i % 8)
		}
		if err := check(b); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func openAll(k *Keys, c *Codec, b []byte) error {
	table, err := k.ReadTable(bytes.NewReader(b), int64(len(b)), PackName{ID: testID})
	if err != nil {
		return err
	}
	for _, s := range table.Segments {
		if _, err := k.Opener(testID).Open(c, s, b[s.Place:s.Place+s.Stored], nil); err != nil {
			return err
		}
	}
	return nil
}

// No sealed object and no segment stands in for another.
func TestNothingStandsInForAnother(t *testing.T) {
	k, c := testKeys(), testCodec(t)
	b, err := k.Seal(DiskName(testID), testSalt, []byte("content"))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := k.Unseal(DiskName(otherID), b); !errors.Is(err, ErrDamaged) {
		t.Errorf("under another name: %v", err)
	}
	other := testMaster()
	other[0] ^= 1
	if _, _, err := NewKeys(other).Unseal(DiskName(testID), b); !errors.Is(err, ErrDamaged) {
		t.Errorf("with another key: %v", err)
	}
	p := k.NewPack(testID, nil)
	for range 2 {
		p.Add(Segment{Kind: Run, Plain: 4}, []byte("same"))
	}
	s := p.Segments()
	stored := p.b[s[0].Place:][:s[0].Stored]
	if _, err := k.Opener(testID).Open(c, s[1], stored, nil); !errors.Is(err, ErrDamaged) {
		t.Errorf("another number: %v", err)
	}
	if _, err := k.Opener(otherID).Open(c, s[0], stored, nil); !errors.Is(err, ErrDamaged) {
		t.Errorf("another pack: %v", err)
	}
	page := s[0]
	page.Kind = Page
	if _, err := k.Opener(testID).Open(c, page, stored, nil); !errors.Is(err, ErrDamaged) {
		t.Errorf("another kind: %v", err)
	}
}

func TestOneKeyOpensAKeyFile(t *testing.T) {
	header := Header{ID: testID}.Encode()
	mine, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	phrase, err := age.NewScryptRecipient("a passphrase")
	if err != nil {
		t.Fatal(err)
	}
	phrase.SetWorkFactor(10)
	open, err := age.NewScryptIdentity("a passphrase")
	if err != nil {
		t.Fatal(err)
	}
	wrong, err := age.NewScryptIdentity("another")
	if err != nil {
		t.Fatal(err)
	}
	for kind, c := range map[string]struct {
		to   age.Recipient
		with age.Identity
	}{"X25519": {mine.Recipient(), mine}, "scrypt": {phrase, open}} {
		b, err := WrapKey(testMaster(), header, c.to)
		if err != nil {
			t.Fatal(err)
		}
		if m, err := UnwrapKey(b, header, wrong, c.with); err != nil || m != testMaster() {
			t.Errorf("%s: %v", kind, err)
		}
		if _, err := UnwrapKey(b, header, wrong); !errors.Is(err, ErrKey) {
			t.Errorf("%s: a wrong key: %v", kind, err)
		}
		if _, err := UnwrapKey(b, Header{ID: otherID}.Encode(), c.with); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: another vault: %v", kind, err)
		}
		if kinds, err := KeyKinds(b); err != nil || !slices.Equal(kinds, []string{kind}) {
			t.Errorf("%v, %v", kinds, err)
		}
		for i := range b {
			bad := slices.Clone(b)
			bad[i] ^= 1
			if m, err := UnwrapKey(bad, header, c.with); err == nil {
				t.Errorf("%s: byte %d altered: key %x", kind, i, m)
			}
		}
	}
}

func TestNewerIsToldFromDamaged(t *testing.T) {
	k := testKeys()
	later := func(b []byte) []byte {
		b = slices.Clone(b)
		b[8] = 2
		putSum(b)
		return b
	}
	all := examples(t)
	_, header := ParseHeader(later(all["vault"]))
	_, _, point := k.Unseal("name", later(all["point"]))
	_, pack := k.ReadTable(bytes.NewReader(later(all["pack"])), int64(len(all["pack"])), PackName{ID: testID})
	for what, err := range map[string]error{"vault": header, "point": point, "pack": pack} {
		if !errors.Is(err, ErrNewer) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestNamesAreReadAsTheyAreWritten(t *testing.T) {
	point := PointName{Disk: testID, Time: time.Date(2026, 11, 27, 10, 0, 0, 0, time.UTC), ID: otherID}
	if got, err := ParsePointName(point.String()); err != nil || got != point {
		t.Errorf("%v, %v", got, err)
	}
	pack := PackName{testID, 12}
	for _, name := range []string{pack.String(), pack.Dead()} {
		if got, err := ParsePackName(name); err != nil || got != pack {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for _, bad := range []string{
		"", "packs/", strings.Replace(pack.String(), ".12", ".012", 1), strings.Replace(pack.String(), "packs/01", "packs/02", 1),
		strings.ToUpper(pack.String()), pack.String() + "/", strings.Replace(pack.String(), ".12", ".4294967296", 1),
	} {
		if got, err := ParsePackName(bad); !errors.Is(err, ErrNotVault) {
			t.Errorf("%q: %v, %v", bad, got, err)
		}
	}
}

// What encodes is what a page can have, and no more.
func TestPagesThatCannotBeAreNotWritten(t *testing.T) {
	for what, l := range map[string]Leaf{
		"empty":           {},
		"overlap":         {{Off: 0, Len: 2, Ref: Ref{testID, 0}}, {Off: 1, Len: 1, Ref: Ref{testID, 0}}},
		"behind the page": {{Off: LeafSize, Len: 1, Ref: Ref{testID, 0}}},
		"no bytes":        {{Off: 0, Ref: Ref{testID, 0}}},
		"no segment":      {{Off: 0, Len: 1}},
		"out of segment":  {{Off: 0, Len: 2, Ref: Ref{testID, 0}, At: MaxSegment - 1}},
		"too many":        slices.Repeat(Leaf{{}}, MaxEntries+1),
	} {
		if _, err := l.Encode(); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := new(Inner).Encode(1); !errors.Is(err, ErrDamaged) {
		t.Error(err)
	}
	full := make(Leaf, MaxEntries) // the largest that there is
	for i := range full {
		full[i] = Entry{Off: int64(i) * 2000, Len: 1999, Ref: Ref{ID{1, byte(i), byte(i >> 8)}, uint32(i%2) * (1<<18 - 1)}, At: MaxSegment - 1999}
	}
	b, err := full.Encode()
	if err != nil || len(b) > MaxSegment {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if got, err := DecodeLeaf(b); err != nil || !slices.Equal(got, full) {
		t.Error(err)
	}
}

func TestAMapCoversItsDisk(t *testing.T) {
	for size, want := range map[int64]int{0: 0, 1: 0, LeafSize: 0, LeafSize + 1: 1, 16 << 30: 1, 16<<30 + 1: 2, 16 << 40: 2, 1<<63 - 1: 4} {
		if got := Level(size); got != want || Covers(got) < size {
			t.Errorf("%d bytes: level %d, want %d", size, got, want)
		}
	}
}
