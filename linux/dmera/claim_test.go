package dmera

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"tidemark/format/era"
	"tidemark/linux/dm"
)

func device(o Options) *Device {
	return &Device{info: dm.Info{Name: "a b"}, o: o}
}

func folders(t *testing.T) Options {
	return Options{RunDir: filepath.Join(t.TempDir(), "run"), StateDir: filepath.Join(t.TempDir(), "state")}
}

func claimed(t *testing.T, o Options) *claim {
	t.Helper()
	c, err := device(o).newClaim()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// die is what the kernel does for a process that is killed.
func (c *claim) die(t *testing.T) {
	t.Helper()
	if err := c.lock.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestOneOwnerAtATime(t *testing.T) {
	o := folders(t)
	c := claimed(t, o)
	if _, err := device(o).newClaim(); !errors.Is(err, ErrHeld) {
		t.Errorf("a second owner: %v", err)
	}
	if err := c.write(record{Device: "a b", Era: 7}); err != nil {
		t.Fatal(err)
	}
	if err := c.release(); err != nil {
		t.Fatal(err)
	}
	if next := claimed(t, o); next.old != nil {
		t.Errorf("a record after release: %+v", next.old)
	}
}

// Of the snapshots that may be found held, the one that a dead process took is ours.
func TestWhoseSnapshot(t *testing.T) {
	id, other := era.Identity{1}, era.Identity{2}
	for _, c := range []struct {
		name  string
		taken era.Era // what the dead process had written down; 0: not that far
		found era.Superblock
		want  bool
	}{
		{"it died before it could say", 0, era.Superblock{Identity: id, Era: 8}, true},
		{"older than the claim", 0, era.Superblock{Identity: id, Era: 7}, false},
		{"of other metadata", 0, era.Superblock{Identity: other, Era: 8}, false},
		{"the one it took", 8, era.Superblock{Identity: id, Era: 8}, true},
		{"one taken later", 8, era.Superblock{Identity: id, Era: 9}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := folders(t)
			dead := claimed(t, o)
			rec := record{Device: "a b", Identity: id, Era: 7, Held: c.taken}
			if err := dead.write(rec); err != nil {
				t.Fatal(err)
			}
			dead.die(t)
			next := claimed(t, o)
			if got := next.took(c.found); got != c.want {
				t.Errorf("ours: %v, want %v", got, c.want)
			}
			next.die(t)
			// A reboot empties one folder.
			if err := os.RemoveAll(o.RunDir); err != nil {
				t.Fatal(err)
			}
			if next = claimed(t, o); next.took(c.found) != c.want {
				t.Errorf("after a reboot: want %v", c.want)
			}
			next.die(t)
			if err := os.RemoveAll(o.StateDir); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(o.RunDir); err != nil {
				t.Fatal(err)
			}
			if claimed(t, o).took(c.found) {
				t.Error("ours without a record")
			}
		})
	}
}

func TestRecordThatCannotBeUnderstood(t *testing.T) {
	o := folders(t)
	for _, text := range []string{"", "{", `{"version":2,"device":"a b","era":1}`} {
		if err := os.MkdirAll(filepath.Join(o.RunDir, "era"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(o.RunDir, "era", "a b.lock"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c := claimed(t, o)
		if c.took(era.Superblock{Era: 5}) {
			t.Errorf("%q makes a snapshot ours", text)
		}
		c.die(t)
	}
}
