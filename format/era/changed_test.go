package era

import (
	"bytes"
	"errors"
	"strconv"
	"testing"
)

func changedXML(v *View, q Query) (string, error) {
	var b bytes.Buffer
	x := NewRangesXML(&b)
	if err := v.Changed(q, x.Range); err != nil {
		return "", err
	}
	err := x.Close()
	return b.String(), err
}

func TestChangedEqualsWriteLogAndTools(t *testing.T) {
	for _, c := range goodCases(t) {
		t.Run(c.name, func(t *testing.T) {
			m := c.open(t)
			compareLists(t, c, m.Live(), "changed-with-current")
			if len(c.list(t, "invalidate-snap")) == 0 {
				return
			}
			v, err := m.Snapshot()
			if err != nil {
				t.Fatal(err)
			}
			compareLists(t, c, v, "invalidate-snap")
			if err := v.Recheck(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func compareLists(t *testing.T, c *theCase, v *View, prefix string) {
	t.Helper()
	list := c.list(t, prefix)
	if len(list) == 0 {
		t.Fatalf("no lists %s", prefix)
	}
	for _, since := range list {
		n, err := strconv.ParseUint(since, 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		got, err := changedXML(v, Query{Since: Era(n)})
		if err != nil {
			t.Fatal(err)
		}
		want := string(c.file(t, prefix+"-"+since+".xml"))
		if got != want {
			t.Errorf("%s-%s:\n%s\nwant\n%s", prefix, since, got, want)
		}
	}
}

func TestOpenTellsApart(t *testing.T) {
	for name, want := range map[string]error{
		"c20-all-zero":         ErrNotEra,
		"c16-corrupt.sb-magic": ErrNotEra,
		"c16-corrupt.sb-byte":  ErrDamaged,
	} {
		c := theCaseNamed(t, name)
		_, err := Open(bytes.NewReader(c.image), int64(len(c.image)))
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
}
