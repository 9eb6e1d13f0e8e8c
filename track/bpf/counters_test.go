package bpf_test

import (
	"os"
	"path/filepath"
	"testing"

	"tidemark/extent"
)

func TestResetOfZramLosesTheMarks(t *testing.T) {
	opts := places(t)
	dev := zram(t, 16<<20)
	l := open(t, dev, opts)
	m := cut(t, l)
	write(t, dev, 0, 4096, 1)
	wantChanges(t, l, m, "", extent.Extent{Len: 4096})
	dir := "/sys/block/" + filepath.Base(dev)
	for _, set := range [][2]string{{"reset", "1"}, {"disksize", "16777216"}} {
		if err := os.WriteFile(filepath.Join(dir, set[0]), []byte(set[1]), 0); err != nil {
			t.Fatal(err)
		}
	}
	_, err := l.Changes(t.Context(), m, "")
	wantLost(t, err, "was reset")
	_, err = l.Cut(t.Context())
	wantLost(t, err, "was reset")
	wantRestart(t, dev, opts, m, "was reset")
}

// A cut is told of what was counted before by the bitmap of the epoch before.
func TestResetAfterACutLosesTheMarks(t *testing.T) {
	opts := places(t)
	dev := zram(t, 16<<20)
	write(t, dev, 0, 1<<20, 1)
	l := open(t, dev, opts)
	cut(t, l)
	m := cut(t, l)
	for _, set := range [][2]string{{"reset", "1"}, {"disksize", "16777216"}} {
		if err := os.WriteFile("/sys/block/"+filepath.Base(dev)+"/"+set[0], []byte(set[1]), 0); err != nil {
			t.Fatal(err)
		}
	}
	write(t, dev, 0, 4096, 2)
	_, err := l.Changes(t.Context(), m, "")
	wantLost(t, err, "was reset")
}
