package dm

import (
	"encoding/binary"
	"errors"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// asReplied changes an encoded table to what the kernel returns: offsets count from
// the first target, and the last string ends the data.
func asReplied(table []Target) []byte {
	data := encodeTable(table)
	at := 0
	for range table {
		next := at + int(binary.NativeEndian.Uint32(data[at+20:]))
		binary.NativeEndian.PutUint32(data[at+20:], uint32(next))
		at = next
	}
	return data
}

func TestTablesAreReadAsTheyAreWritten(t *testing.T) {
	table := []Target{{0, 8, "linear", "8:0 0"}, {8, 1 << 40, "zero", ""}, {1<<40 + 8, 1, "striped", strings.Repeat("x", 5000)}}
	got, err := parseTargets(asReplied(table), 3)
	if err != nil || !reflect.DeepEqual(got, table) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestTablesThatAreRefused(t *testing.T) {
	for want, table := range map[string][]Target{
		"it has no targets":  nil,
		"target 0 (linear)":  {{0, 0, "linear", ""}},
		"ends at 8":          {{0, 8, "zero", ""}, {9, 8, "zero", ""}},
		"target 0 (zero)":    {{1, 8, "zero", ""}},
		"not a type":         {{0, 8, "a name of 16 byt", ""}},
		"have a NUL":         {{0, 8, "linear", "a\x00b"}},
		"more than there ca": {{0, 8, "zero", ""}, {8, 1<<64 - 8, "zero", ""}},
	} {
		if err := checkTable(table); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", table, err, want)
		}
	}
}

// entries encodes a list of devices as Linux 5.13 and later do.
func entries(all []Entry) []byte {
	var data []byte
	for i, e := range all {
		one := make([]byte, nameEntrySize)
		put(one, &nameEntry{Dev: unix.Mkdev(e.Major, e.Minor)})
		one = append(append(one, e.Name...), 0)
		one = append(one, make([]byte, align(len(one))-len(one)+8)...)
		binary.NativeEndian.PutUint32(one[len(one)-8:], e.EventNr)
		if e.UUID != "" {
			binary.NativeEndian.PutUint32(one[len(one)-4:], entryHasUUID)
			one = append(append(one, e.UUID...), 0)
		}
		one = append(one, make([]byte, align(len(one))-len(one))...)
		if i < len(all)-1 {
			binary.NativeEndian.PutUint32(one[8:], uint32(len(one)))
		}
		data = append(data, one...)
	}
	return data
}

func TestListsAreReadWhole(t *testing.T) {
	want := []Entry{{"a", "", 253, 0, 3}, {"name", "uuid-1", 253, 1, 0}, {"last", "u", 253, 300, 9}}
	got, err := parseEntries(entries(want), minorUUIDs)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	got, err = parseEntries(entries(want), minorEventNr-1)
	if err != nil || len(got) != 3 || got[1] != (Entry{Name: "name", Major: 253, Minor: 1}) {
		t.Errorf("from an older kernel: %v, %v", got, err)
	}
	for _, none := range [][]byte{nil, make([]byte, 24)} {
		if got, err := parseEntries(none, minorUUIDs); err != nil || got != nil {
			t.Errorf("no devices: %v, %v", got, err)
		}
	}
}

// Cut or with any byte changed, a reply is an error or something else, never a panic
// and never read beyond its end.
func FuzzReplies(f *testing.F) {
	seed := func(h header, data []byte) {
		buf := make([]byte, headerSize)
		h.Version, h.DataStart, h.DataSize = [3]uint32{4, 48, 0}, headerSize, uint32(headerSize+len(data))
		put(buf, &h)
		f.Add(append(buf, data...))
	}
	seed(header{TargetCount: 2}, asReplied([]Target{{0, 8, "linear", "8:0 0"}, {8, 8, "era", "x"}}))
	seed(header{}, entries([]Entry{{"a", "uuid", 253, 0, 1}, {"b", "", 253, 1, 2}}))
	seed(header{}, []byte("\x20\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x03\x00\x00\x00linear\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"+
		"\x00\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x03\x00\x00\x00zero\x00\x00\x00\x00"))
	seed(header{}, []byte("\x02\x00\x00\x00\x00\x00\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\xfd\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, buf []byte) {
		r, err := parseReply(buf)
		if err != nil {
			return
		}
		if _, err := r.info(); err != nil && !errors.Is(err, errReply) {
			t.Error(err)
		}
		data, err := r.data()
		if err != nil {
			return
		}
		table, _ := parseTargets(data, r.TargetCount)
		list, _ := parseEntries(data, r.version().Minor)
		kinds, _ := parseVersions(data)
		deps, _ := parseDeps(data)
		if len(table)*specSize > len(data) || len(list)*nameEntrySize > len(data) || len(kinds)*versionEntrySize > len(data) || len(deps)*8 > len(data) {
			t.Errorf("more was read than %d bytes hold", len(data))
		}
	})
}

func FuzzTablesReadBack(f *testing.F) {
	f.Add(uint64(8), "linear", "8:0 0", "zero", "")
	f.Fuzz(func(t *testing.T, n uint64, kind, params, kind2, params2 string) {
		table := []Target{{0, n, kind, params}, {n, 1, kind2, params2}}
		if checkTable(table) != nil {
			return
		}
		got, err := parseTargets(asReplied(table), 2)
		if err != nil || !reflect.DeepEqual(got, table) {
			t.Errorf("%v became %v, %v", table, got, err)
		}
	})
}
