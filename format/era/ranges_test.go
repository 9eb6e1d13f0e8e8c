package era

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

func ranges(t testing.TB, v *View, q Query) []Range {
	t.Helper()
	var list []Range
	if err := v.Changed(q, func(r Range) error { list = append(list, r); return nil }); err != nil {
		t.Fatal(err)
	}
	return list
}

func TestRangesAreReadAsWritten(t *testing.T) {
	for _, c := range goodCases(t) {
		v := c.open(t).Live()
		text, err := changedXML(v, Query{Since: 1})
		if err != nil {
			t.Fatal(err)
		}
		oneLine := strings.ReplaceAll(strings.ReplaceAll(text, "\n", ""), " = ", "=")
		for _, x := range []string{text, oneLine} {
			var got []Range
			if err := ParseRangesXML(strings.NewReader(x), func(r Range) error { got = append(got, r); return nil }); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, ranges(t, v, Query{Since: 1})) {
				t.Errorf("%s: reads as something else", c.name)
			}
		}
	}
}

func TestRangesRefused(t *testing.T) {
	for _, x := range []string{
		"", "<blocks>", "<blocks>\n  <", "<superblock/>", "<blocks><block block=\"1\"/>", "<blocks></blocks><blocks/>",
		"<blocks><block block=\"4294967296\"/></blocks>", "<blocks><block block=\"-1\"/></blocks>", "<blocks><block/></blocks>",
		"<blocks><range begin=\"2\" end=\"2\"/></blocks>", "<blocks><era block=\"1\"/></blocks>", "<blocks>\n1 2\n</blocks>",
	} {
		err := ParseRangesXML(strings.NewReader(x), func(Range) error { return nil })
		if !errors.Is(err, ErrXML) || errors.Is(err, io.EOF) != (x == "") {
			t.Errorf("%q: %v", x, err)
		}
	}
}

// TestJSONSaysTheSame reads the JSON back and compares it with the dump.
func TestJSONSaysTheSame(t *testing.T) {
	for _, c := range goodCases(t) {
		v := c.open(t).Live()
		var b bytes.Buffer
		if err := v.Dump(NewJSON(&b), DumpOptions{}); err != nil {
			t.Fatal(err)
		}
		var got struct {
			Header
			Writesets []struct {
				Era    Era
				Bits   uint32 `json:"nr_bits"`
				Marked [][2]int
			}
			Array [][3]int `json:"era_array"`
		}
		if err := json.Unmarshal(b.Bytes(), &got); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		want := contentOf(t, v, DumpOptions{})
		var eras []Era
		for _, r := range got.Array {
			eras = append(eras, slices.Repeat([]Era{Era(r[2])}, r[1]-r[0])...)
		}
		if got.Header != want.h || !slices.Equal(eras, want.eras) || len(got.Writesets) != len(want.order) {
			t.Fatalf("%s: header or era array differ", c.name)
		}
		for i, w := range got.Writesets {
			bits := make([]bool, w.Bits)
			for _, r := range w.Marked {
				for b := r[0]; b < r[1]; b++ {
					bits[b] = true
				}
			}
			if w.Era != want.order[i] || !slices.Equal(bits, want.writesets[w.Era]) {
				t.Errorf("%s: writeset of era %d differs", c.name, w.Era)
			}
		}
	}
}
