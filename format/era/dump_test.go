package era

import (
	"bytes"
	"testing"
)

func dumpXML(v *View, o DumpOptions) (string, error) {
	var b bytes.Buffer
	err := v.Dump(NewXML(&b), o)
	return b.String(), err
}

func TestDumpEqualsTools09(t *testing.T) {
	for _, c := range goodCases(t) {
		if !c.has("dump.xml.zst") {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			got, err := dumpXML(c.open(t).Live(), DumpOptions{Archived: true})
			if err != nil {
				t.Fatal(err)
			}
			if want := string(c.file(t, "dump.xml.zst")); got != want {
				t.Errorf("dump differs from era_dump 0.9: %d bytes, want %d", len(got), len(want))
			}
		})
	}
}
