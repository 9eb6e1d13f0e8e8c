package traces

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"tidemark/extent"
	"tidemark/linux/mounts/mountstest"
)

// The tables are sfdisk's; a logical partition lies in the extended one behind a record of
// its own.
func TestPartitionsAreThoseOfTheTable(t *testing.T) {
	const mib = 1 << 20
	for name, c := range map[string]struct {
		script string
		at     int64 // of the signature
		want   []extent.Extent
	}{
		"gpt": {
			"label: gpt\nstart=1MiB, size=4MiB\nstart=8MiB, size=8MiB\n", 512,
			[]extent.Extent{{Off: mib, Len: 4 * mib}, {Off: 8 * mib, Len: 8 * mib}},
		},
		"dos": {
			"label: dos\nstart=1MiB, size=4MiB, type=83\nstart=6MiB, size=20MiB, type=5\nstart=7MiB, size=4MiB, type=83\nstart=12MiB, size=6MiB, type=83\n", 510,
			[]extent.Extent{{Off: mib, Len: 4 * mib}, {Off: 7 * mib, Len: 4 * mib}, {Off: 12 * mib, Len: 6 * mib}},
		},
	} {
		image := mountstest.Image(t, 32*mib)
		script := c.script
		if name == "dos" { // logical partitions are numbered from 5 on
			script = strings.Replace(script, "start=7MiB", image+"5: start=7MiB", 1)
			script = strings.Replace(script, "start=12MiB", image+"6: start=12MiB", 1)
		}
		cmd := exec.Command("sfdisk", "--quiet", image)
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("sfdisk: %v: %s (scripts/setup installs it)", err, out)
		}
		f, err := os.Open(image)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		found, err := partitions(f, c.at, 32*mib)
		var got []extent.Extent
		for _, p := range found {
			got = append(got, p.Extent)
		}
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, %v; want %v", name, got, err, c.want)
		}
		// A table that makes no sense is no reason to fail, nor to read without end.
		for off := int64(0); off < 1024; off += 7 {
			b := make([]byte, 64<<10)
			if _, err := f.ReadAt(b, 0); err != nil {
				t.Fatal(err)
			}
			for i := off; i < off+40; i++ {
				b[i] ^= 0xa5
			}
			if _, err := partitions(padded(b), c.at, 32*mib); err != nil {
				t.Errorf("%s, damaged at byte %d: %v", name, off, err)
			}
		}
	}
}

// padded is what a disk holds, with zeros behind it.
type padded []byte

func (p padded) ReadAt(b []byte, off int64) (int, error) {
	clear(b)
	if off < int64(len(p)) {
		copy(b, p[off:])
	}
	return len(b), nil
}
