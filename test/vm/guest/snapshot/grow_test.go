//go:build linux

package snapshot_test

import (
	"errors"
	"os"
	"testing"

	"tidemark/linux/fiemap"
	"tidemark/snapshot"
	"tidemark/test/vm/guest"
	"tidemark/test/vm/guest/instant"
)

// A store on the origin's own filesystem grows while it is in use, and only into blocks that were nobody's
// at the instant: what a file had that is gone since the image goes on to show. A rollback puts all back.
func TestAStoreInsideGrows(t *testing.T) {
	for _, c := range []struct {
		name, kind string
		persistent bool
	}{{"ext4", "ext4", false}, {"xfs", "xfs", false}, {"ext4, persistent", "ext4", true}} {
		t.Run(c.name, func(t *testing.T) {
			name, at := origin(t, 0, c.kind)
			dev := "/dev/mapper/" + name
			write := func(file string, mib int) {
				t.Helper()
				sh(t, "dd if=/dev/urandom of=%s/%s bs=1M count=%d conv=fsync status=none", at, file, mib)
			}
			write("kept", 6)
			write("gone", 10)
			s, held := take(t, snapshot.Request{Persistent: c.persistent, Reserve: 1 << 20, Devices: []snapshot.Device{{Path: dev, Size: 5 << 20}}})
			if err := os.Remove(at + "/gone"); err != nil {
				t.Fatal(err)
			}
			sh(t, "sync")
			grow := func(more int64) error {
				t.Helper()
				v := s.Volumes[0]
				before := v.Store.Size
				err := s.Grow(t.Context(), v, before+more)
				t.Logf("from %d by %d KiB: %v", before>>10, (v.Store.Size-before)>>10, err)
				for _, e := range v.Store.Extents {
					clear(held[0][e.Off:e.End()])
				}
				return err
			}
			cow := name + "+" + s.Name + "+cow"
			table := guest.Run(t, "dmsetup", "table", cow)
			if err := grow(3 << 20); err != nil {
				t.Fatal(err)
			}
			// As if it was cut off before the kernel knew of more.
			sh(t, "dmsetup suspend --nolockfs %s", cow)
			guest.Run(t, "dmsetup", "load", cow, "--table", table)
			sh(t, "dmsetup resume %s", cow)
			if err := s.Grow(t.Context(), s.Volumes[0], s.Volumes[0].Store.Size); err != nil {
				t.Error(err)
			}
			if err := s.Grow(t.Context(), s.Volumes[0], s.Volumes[0].Store.Size); !errors.Is(err, snapshot.ErrStore) {
				t.Errorf("by nothing: %v", err)
			}
			write("more", 2)
			write("kept", 4) // in the place of what was there
			instant.Compare(t, held[0], instant.MustRead(t, s.Image(s.Volumes[0])))
			was := s.Volumes[0].Store.Size
			var full error
			for full == nil { // until it gets others' blocks
				full = grow(3 << 20)
			}
			if !errors.Is(full, snapshot.ErrNoRoom) {
				t.Errorf("a store without room: %v", full)
			}
			if s.Volumes[0].Store.Size <= was {
				t.Errorf("a store of %d bytes, and before %d", s.Volumes[0].Store.Size, was)
			}
			if st, err := s.Status(); err != nil || st.Lost != "" || st.Volumes[0].Total != s.Volumes[0].Store.Size {
				t.Errorf("%+v, %v", st, err)
			}
			guarded(t, s.Volumes[0].Store.Path)
			write("kept", 3)
			image := s.Image(s.Volumes[0])
			instant.Compare(t, held[0], instant.MustRead(t, image))
			check(t, c.kind, image)
			guest.Run(t, "umount", at)
			if c.persistent {
				sh(t, "tidemark snapshot rollback %s", s.Name)
				got := instant.MustRead(t, dev)
				for _, e := range s.Volumes[0].Store.Extents {
					clear(got[e.Off:e.End()])
				}
				instant.Compare(t, held[0], got)
			}
			check(t, c.kind, dev)
			guest.Run(t, "mount", dev, at)
			if c.persistent {
				sh(t, "tidemark snapshot repair")
			} else {
				destroy(t, s)
			}
			bare(t, at)
		})
	}
}

// guarded fails unless the next command makes the file of a store immutable again, which a growth that
// was cut off has left open.
func guarded(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if kept, err := fiemap.Immutable(f); err != nil || !kept {
		t.Errorf("the store can be changed: %v", err)
	}
	if err := fiemap.SetImmutable(f, false); err != nil {
		t.Fatal(err)
	}
	sh(t, "tidemark snapshot repair")
	if kept, err := fiemap.Immutable(f); err != nil || !kept {
		t.Errorf("the store can be changed after a repair: %v", err)
	}
}
