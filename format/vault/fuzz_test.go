package vault

import (
	"bytes"
	"encoding/binary"
	"testing"
)

func FuzzHeader(f *testing.F) {
	all := examples(f)
	f.Add(all["vault"])
	f.Add(all["open"])
	f.Add(all["locked"])
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > sumSize {
			putSum(b)
		}
		if h, err := ParseHeader(b); err == nil && !bytes.Equal(h.Encode(), b) {
			t.Errorf("%x became %x", b, h.Encode())
		}
	})
}

func FuzzSealed(f *testing.F) {
	k := testKeys()
	sealed, err := k.Seal("name", testSalt, []byte("content"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed)
	f.Fuzz(func(t *testing.T, b []byte) {
		content, salt, err := k.Unseal("name", b)
		if err != nil {
			return
		}
		if again, err := k.Seal("name", salt, content); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x became %x, %v", b, again, err)
		}
	})
}

// FuzzManifest tries all three kinds with each input.
func FuzzManifest(f *testing.F) {
	point, err := testPoint().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(point)
	f.Add([]byte(`{"name":"web1","host":"","known_by":null}`))
	f.Add([]byte(`{"work":"backup","host":"web1","process":1,"lasts":3600000000000,"begun":"0001-01-01T00:00:00Z"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		same := func(again []byte, err error) {
			if err != nil || !bytes.Equal(again, b) {
				t.Errorf("%q became %q, %v", b, again, err)
			}
		}
		if p, err := ParsePoint(b); err == nil {
			same(p.Encode())
		}
		if d, err := ParseDisk(b); err == nil {
			same(d.Encode())
		}
		if l, err := ParseLease(b); err == nil {
			same(l.Encode())
		}
	})
}

func FuzzPages(f *testing.F) {
	all := examples(f)
	f.Add(all["leaf"], 0)
	f.Add(all["inner"], 1)
	f.Fuzz(func(t *testing.T, b []byte, level int) {
		var again []byte
		if level == 0 {
			l, err := DecodeLeaf(b)
			if err != nil {
				return
			}
			if again, err = l.Encode(); err != nil {
				t.Fatal(err)
			}
		} else {
			p, err := DecodeInner(b, level)
			if err != nil {
				return
			}
			if again, err = p.Encode(level); err != nil && level >= 1 && level <= MaxLevel {
				t.Fatal(err)
			} else if err != nil {
				return
			}
		}
		if !bytes.Equal(again, b) {
			t.Errorf("%x became %x", b, again)
		}
	})
}

// FuzzTable seals the table first, so that the fuzzer gets past the seal.
func FuzzTable(f *testing.F) {
	k := testKeys()
	p, _ := testPack(testCodec(f), k)
	var plain []byte
	for _, s := range p.Segments() {
		plain = s.encode(plain)
	}
	f.Add(plain, uint32(p.Len()))
	f.Fuzz(func(t *testing.T, plain []byte, length uint32) {
		n := len(plain) / entrySize
		b := k.NewPack(testID, nil).b
		b = append(b, make([]byte, length%(1<<12))...)
		end := make([]byte, packEnd)
		copy(end, tableMagic)
		binary.LittleEndian.PutUint32(end[8:], uint32(n))
		copy(end[16:], testSalt[:])
		additional := append(bytes.Clone(b[:packHead]), end[:packEnd-sumSize]...)
		b = k.cipher(testSalt[:], "table").Seal(b, noNonce[:], plain[:n*entrySize], additional)
		b = append(b, end...)
		putSum(b)
		table, err := k.ReadTable(bytes.NewReader(b), int64(len(b)), PackName{ID: testID})
		if err != nil {
			return
		}
		again := &Pack{name: table.Name, keys: k, b: bytes.Clone(b[:table.endOfSegments()]), table: table.Segments}
		if got := again.End(table.Salt); !bytes.Equal(got, b) {
			t.Errorf("%x became %x", b, got)
		}
	})
}

func (t *Table) endOfSegments() int64 {
	last := t.Segments[len(t.Segments)-1]
	return last.Place + last.Stored
}

// FuzzPack gives bytes as they are to what looks at packs, segments and key files.
func FuzzPack(f *testing.F) {
	k, c := testKeys(), testCodec(f)
	p, _ := testPack(c, k)
	f.Add(p.End(testSalt))
	f.Add([]byte("age-encryption.org/v1\n-> scrypt "))
	f.Fuzz(func(t *testing.T, b []byte) {
		name, err := CheckPack(b)
		if err == nil {
			if _, err := k.ReadTable(bytes.NewReader(b), int64(len(b)), name); err == nil {
				if err := openAll(k, c, b); err != nil {
					t.Error(err)
				}
			}
		}
		if _, err := KeyKinds(b); err == nil && len(b) == 0 {
			t.Error("nothing is a key file")
		}
	})
}

func FuzzNames(f *testing.F) {
	f.Add(PackName{testID, 3}.String())
	f.Add(PackName{testID, 0}.Dead())
	f.Add(PointName{Disk: testID, Time: testPoint().Moment, ID: otherID}.String())
	f.Fuzz(func(t *testing.T, name string) {
		if p, err := ParsePackName(name); err == nil && p.String() != name && p.Dead() != name {
			t.Errorf("%q became %v", name, p)
		}
		if p, err := ParsePointName(name); err == nil && p.String() != name {
			t.Errorf("%q became %v", name, p)
		}
	})
}
