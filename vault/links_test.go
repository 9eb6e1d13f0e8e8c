package vault

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	format "tidemark/format/vault"
)

// A folder may be of a user who is not root: links that he puts there lead root nowhere.
func TestLinksInTheFolderAreNotFollowed(t *testing.T) {
	for _, link := range []string{"dead", "tmp", "leases", "points", "packs", "packs/XX", "disks", "lost"} {
		t.Run(link, func(t *testing.T) {
			s, root := folder(t)
			v := open(t, s, Options{})
			p := point(t, v, From{Size: 1 << 20}, map[int64][]byte{0: noise(1, 1<<20)})
			if err := v.Forget(t.Context(), p.Name); err != nil {
				t.Fatal(err)
			}
			if link == "packs/XX" {
				all, err := filepath.Glob(filepath.Join(root, "packs", "*"))
				if err != nil || len(all) == 0 {
					t.Fatal(all, err)
				}
				link = "packs/" + filepath.Base(all[0])
			}
			victim := t.TempDir()
			name := format.ID{1}.String()
			files := []string{"passwd", "sub/shadow", name, name + ".0", "sub/" + name + ".0"}
			if err := os.Mkdir(filepath.Join(victim, "sub"), 0o700); err != nil {
				t.Fatal(err)
			}
			old := time.Now().Add(-1000 * time.Hour)
			for _, f := range files {
				path := filepath.Join(victim, f)
				if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.Chtimes(path, old, old); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.RemoveAll(filepath.Join(root, link)); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(victim, filepath.Join(root, link)); err != nil {
				t.Fatal(err)
			}
			for _, now := range []bool{false, true} {
				_, err := v.Prune(t.Context(), PruneOptions{Now: now})
				t.Log(err)
			}
			w, err := v.Begin(t.Context(), From{Disk: format.ID{9}, Size: 1 << 20})
			if err == nil {
				w.Put(0, noise(2, 1<<20))
				_, err = w.Commit(format.Point{Moment: time.Now()})
				w.Close()
			}
			t.Log(err)
			for _, f := range files {
				if _, err := os.Stat(filepath.Join(victim, f)); err != nil {
					t.Error(err)
				}
			}
			if all, err := filepath.Glob(filepath.Join(victim, "*")); err != nil || len(all) != 4 {
				t.Errorf("%v, %v", all, err)
			}
		})
	}
}
