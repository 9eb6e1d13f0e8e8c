package snapshot

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/extent"
	"tidemark/linux/mounts/mountstest"
)

// seen is a look at a device, as a record keeps it.
func seen(t *testing.T, v *Volume, dev string) *Note {
	t.Helper()
	n, err := v.look(dev)
	if err != nil {
		t.Fatal(err)
	}
	var kept Note
	raw, err := json.Marshal(n)
	if err == nil {
		err = json.Unmarshal(raw, &kept)
	}
	if err != nil {
		t.Fatal(err)
	}
	if !kept.same(n) {
		t.Errorf("noted %+v, read %+v", n, kept)
	}
	return &kept
}

// A shutdown and, with ext4, a power cut are told from every use of the disk in between.
func TestUsesInBetweenAreFound(t *testing.T) {
	for _, c := range []struct{ kind, afterCut string }{{"ext4", ""}, {"xfs", "XFS does not tell"}} {
		t.Run(c.kind, func(t *testing.T) {
			v := &Volume{Size: 320 << 20}
			image := mountstest.Image(t, v.Size)
			disk := mountstest.Attach(t, image)
			mountstest.Mkfs(t, c.kind, disk)
			use := func(dev string) {
				t.Helper()
				at := mountstest.Mount(t, dev)
				if err := os.WriteFile(filepath.Join(at, "file"), []byte("x"), 0o600); err != nil {
					t.Fatal(err)
				}
				mountstest.Run(t, "umount", at)
			}
			use(disk)
			down := seen(t, v, disk)
			if err := seen(t, v, disk).since(down); !down.Still || err != nil {
				t.Errorf("after a shutdown: %v, %v", down.Still, err)
			}

			at := mountstest.Mount(t, disk)
			mounted := seen(t, v, disk)
			if mounted.Still {
				t.Error("a mounted filesystem stands still")
			}
			if err := os.WriteFile(filepath.Join(at, "more"), make([]byte, 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			mountstest.Run(t, "sync", "-f", at)
			cut := filepath.Join(t.TempDir(), "cut")
			mountstest.Run(t, "cp", "--sparse=always", image, cut)
			mountstest.Run(t, "umount", at)
			after := mountstest.Attach(t, cut)
			says(t, "after the cut", seen(t, v, after).since(mounted), c.afterCut)
			says(t, "after the cut, of what was there before the mount", seen(t, v, after).since(down), "used without it")
			says(t, "after a shutdown that was not noted", seen(t, v, disk).since(mounted), map[string]string{"ext4": "its journal is empty", "xfs": "does not tell"}[c.kind])
			use(after)
			says(t, "used after the cut", seen(t, v, after).since(mounted), map[string]string{"ext4": "its journal is empty", "xfs": "does not tell"}[c.kind])
			use(disk)
			says(t, "used after the shutdown", seen(t, v, disk).since(down), "used without it")

			at = mountstest.Mount(t, after)
			if err := os.WriteFile(filepath.Join(at, "more"), make([]byte, 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			says(t, "mounted by somebody else", seen(t, v, after).since(mounted), map[string]string{"ext4": "mount count is", "xfs": "does not tell"}[c.kind])
			mountstest.Run(t, "umount", at)
		})
	}
}

func says(t *testing.T, when string, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil, want != "" && err == nil, err != nil && !strings.Contains(err.Error(), want):
		t.Errorf("%s: %v, want %q", when, err, want)
	}
}

// A store is a record's own only with the mark that the record has.
func TestAnotherSnapshotsStoreIsToldByItsMark(t *testing.T) {
	own := Store{Mark: strings.Repeat("61", markSize)}
	header := strings.Repeat("-", markAt) + strings.Repeat("a", markSize)
	if err := own.marked(strings.NewReader(header)); err != nil {
		t.Error(err)
	}
	for _, s := range []Store{{}, {Mark: strings.Repeat("61", markSize-1) + "62"}} {
		if err := s.marked(strings.NewReader(header)); !errors.Is(err, errOther) {
			t.Errorf("%q: %v", s.Mark, err)
		}
	}
}

// A store is read where its pieces lie, whatever the pieces and the reads.
func TestPiecesAreReadInTheirOrder(t *testing.T) {
	v := &Volume{}
	for _, e := range [][2]int64{{8, 4}, {0, 3}, {20, 1}} {
		v.Store.Pieces = append(v.Store.Pieces, extent.Extent{Off: e[0], Len: e[1]})
	}
	v.Store.Kind = Inside
	r := pieces{strings.NewReader("abcdefghijklmnopqrstuvwxyz"), v.Store}
	const all = "ijklabcu"
	for off := range len(all) {
		for n := 1; n <= len(all)-off; n++ {
			p := make([]byte, n)
			if got, err := r.ReadAt(p, int64(off)); got != n || string(p) != all[off:off+n] {
				t.Errorf("%d bytes at %d: %q, %v", n, off, p[:got], err)
			}
		}
	}
	if n, err := r.ReadAt(make([]byte, 2), 7); n != 1 || err == nil {
		t.Errorf("behind the end: %d, %v", n, err)
	}
}
