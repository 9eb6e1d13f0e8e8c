//go:build linux

package era_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/format/era"
	"tidemark/linux/dmera"
	"tidemark/test/vm/guest"
)

// The list of "era changes" is the one of era_invalidate 0.9, where that is right:
// on a device that rests, whose live state is that of the snapshot.
func TestChangesAreThoseOfEraInvalidate(t *testing.T) {
	d := create(t, "tools", 64*kib)
	scatter(t, d, 6)
	for _, since := range []int{0, 1, 3, 6, 7} {
		arg := fmt.Sprint(since)
		var said struct {
			Until     era.Era
			BlockSize int64 `json:"block_size"`
			Bytes     int64
			Extents   [][2]int64
		}
		if err := json.Unmarshal([]byte(works(t, "era", "changes", d.Path(), "--since", arg, "--json")), &said); err != nil {
			t.Fatal(err)
		}
		list := works(t, "era", "changes", "tools", "--since", arg, "--xml")
		guest.Run(t, "dmsetup", "message", "tools", "0", "take_metadata_snap")
		theirs := guest.Run(t, "era_invalidate", "--metadata-snapshot", "--written-since", arg, d.MetaPath())
		ours := works(t, "era", "invalidate", "--metadata-snapshot", "--written-since", arg, d.MetaPath())
		guest.Run(t, "dmsetup", "message", "tools", "0", "drop_metadata_snap")
		if strings.TrimSpace(list) != theirs || strings.TrimSpace(ours) != theirs {
			t.Errorf("since %d: %s\nera invalidate: %s\nera_invalidate: %s", since, list, ours, theirs)
		}
		var blocks extent.Builder
		err := era.ParseRangesXML(strings.NewReader(theirs), func(r era.Range) error {
			off, length := r.Bytes(d.BlockSize())
			blocks.Add(extent.Extent{Off: off, Len: length})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if set := blocks.Set(); said.Bytes != set.Bytes() || len(said.Extents) != len(set.Extents()) || said.Until != status(t, d).Era-4 {
			t.Errorf("since %d: %+v, want %v", since, said, set)
		}
	}
	var text strings.Builder
	for _, e := range changes(t, d, 3).Extents() {
		fmt.Fprintf(&text, "%d %d\n", e.Off, e.Len)
	}
	if got := works(t, "era", "changes", "tools", "--since", "3"); got != text.String() {
		t.Errorf("as text: %s, want %s", got, &text)
	}
	if _, errs, code := tidemark(t, "era", "changes", "tools", "--since", "1000"); code != 4 {
		t.Errorf("since an era to come: exit code %d, %s", code, errs)
	}
}

// What a snapshot holds stays as it is while its device is written to.
func TestSnapshotStandsStill(t *testing.T) {
	d := create(t, "still", 64*kib)
	scatter(t, d, 4)
	s, err := d.TakeSnapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := dump(t, s.Metadata())
	for range 3 {
		scatter(t, d, 3)
		if got := dump(t, s.Metadata()); got != want {
			t.Errorf("the snapshot changed:\n%s\nwas\n%s", got, want)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// The kernel takes what restore and repair write, goes on with it, and leaves it
// without a fault; nothing is forgotten.
func TestKernelTakesWhatWeWrite(t *testing.T) {
	data, meta := guest.Disk(t, "data"), guest.Disk(t, "meta")
	d := create(t, "before", 64*kib)
	scatter(t, d, 5)
	before := changes(t, d, 2)
	if err := d.Remove(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	xml, image, repaired := filepath.Join(dir, "xml"), filepath.Join(dir, "image"), filepath.Join(dir, "repaired")
	guest.Run(t, "truncate", "-s", "8M", image, repaired)
	works(t, "era", "dump", meta, "-o", xml)
	works(t, "era", "restore", "-i", xml, "-o", image)
	works(t, "era", "repair", "-i", meta, "-o", repaired)
	for _, path := range []string{image, repaired} {
		t.Run(filepath.Base(path), func(t *testing.T) {
			dev := guest.Loop(t, path)
			ctl := control(t)
			works(t, "era", "open", "after", "--data", data, "--meta", dev)
			t.Cleanup(func() { guest.Run(t, "dmsetup", "remove", "--retry", "after"); clean(t, dev) })
			d, err := dmera.Open(ctl, "after", dmera.Options{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { d.Close() })
			if got := changes(t, d, 2); !got.Equal(before) {
				t.Errorf("changed: %v, want %v", got, before)
			}
			last := status(t, d).Era
			written := scatter(t, d, 5)
			if got := changes(t, d, last); !got.Equal(written) {
				t.Errorf("changed since: %v, want %v", got, written)
			}
		})
	}
}

// scatter writes to random blocks in a number of eras.
func scatter(t testing.TB, d *dmera.Device, eras int) extent.Set {
	t.Helper()
	dev := guest.OpenDirect(t, d.Path())
	defer dev.Close()
	var written []extent.Extent
	for range eras {
		for range 10 {
			off := rand.Int64N(d.Size()/d.BlockSize()) * d.BlockSize()
			if _, err := dev.WriteAt(block.AlignedBuffer(4096), off); err != nil {
				t.Fatal(err)
			}
			written = append(written, extent.Extent{Off: off, Len: d.BlockSize()})
		}
		if err := d.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return extent.NewSet(written...)
}

// dump is all that the metadata tells.
func dump(t testing.TB, v *era.View) string {
	t.Helper()
	var out bytes.Buffer
	if err := v.Dump(era.NewXML(&out), era.DumpOptions{}); err != nil {
		t.Fatal(err)
	}
	return out.String()
}
