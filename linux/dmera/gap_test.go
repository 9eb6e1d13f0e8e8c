package dmera

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"tidemark/block"
	"tidemark/format/era"
)

// metadataFile makes new metadata in a file.
func metadataFile(t *testing.T, id era.Identity) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "meta")
	if err := os.WriteFile(path, make([]byte, 64*era.BlockSize), 0o600); err != nil {
		t.Fatal(err)
	}
	dev, err := block.Open(path, block.Options{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	b := era.NewBuilder(dev, dev.Size())
	b.Identify(id)
	if err := errors.Join(
		b.Begin(era.Header{BlockSectors: 64, NrBlocks: 1}), b.BeginArray(), b.Eras(make([]era.Era, 1)), b.EndArray(), b.End(),
	); err != nil {
		t.Fatal(err)
	}
	return path
}

func changedFile(t *testing.T, id era.Identity, change func(path string) error) string {
	t.Helper()
	path := metadataFile(t, id)
	if err := change(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestMetadataThatCannotBeReadIsNotBelievedLater lets its disk come back after a boot
// past the device: no mark from before is believed, and those from then on are.
func TestMetadataThatCannotBeReadIsNotBelievedLater(t *testing.T) {
	id := era.Identity{1}
	good := metadataFile(t, id)
	for name, bad := range map[string]string{
		"not there": filepath.Join(t.TempDir(), "none"),
		"pulled":    changedFile(t, id, func(path string) error { return os.Truncate(path, 0) }),
		"damaged": changedFile(t, id, func(path string) error {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			b[184] ^= 1 // the era
			return os.WriteFile(path, b, 0o600)
		}),
	} {
		o := Options{StateDir: t.TempDir()}
		path := gapPath(o.StateDir, "root")
		for range 2 {
			if err := NotePast("root", bad, o); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		was, err := readGap(path, id)
		if err != nil || was.gap() != (Gap{notEnded, ErrPast}) {
			t.Errorf("%s: gap %+v, %v", name, was.gap(), err)
		}
		up := gapRecord{Version: recordVersion, Identity: id, Boot: "b", DiskSeq: 7}
		now, changed := was.next(up, Status{Era: 20, DiscardsDisabled: true})
		if !changed || now.Identity != id || now.gap() != (Gap{21, ErrPast}) {
			t.Errorf("%s: up again: gap %+v, %v", name, now, changed)
		}
		if later, changed := now.next(up, Status{Era: 30, DiscardsDisabled: true}); changed || later != now {
			t.Errorf("%s: later: gap %+v, %v", name, later, changed)
		}
		// A second boot past it, with the metadata back.
		if err := NotePast("root", good, o); err != nil {
			t.Fatal(err)
		}
		if was, err = readGap(path, id); err != nil || was.Identity != id || was.gap() != (Gap{1, ErrPast}) {
			t.Errorf("%s: back: gap %+v, %v", name, was, err)
		}
		// A third one, without it again.
		if err := NotePast("root", bad, o); err != nil {
			t.Fatal(err)
		}
		if was, err = readGap(path, id); err != nil || was.gap() != (Gap{notEnded, ErrPast}) {
			t.Errorf("%s: away again: gap %+v, %v", name, was, err)
		}
	}
}

func TestBlankMetadataNeedsNoNote(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meta")
	if err := os.WriteFile(path, make([]byte, 64*era.BlockSize), 0o600); err != nil {
		t.Fatal(err)
	}
	o := Options{StateDir: t.TempDir()}
	if err := NotePast("root", path, o); err != nil {
		t.Fatal(err)
	}
	if was, err := readGap(gapPath(o.StateDir, "root"), era.Identity{}); err != nil || was != (gapRecord{}) {
		t.Errorf("%+v, %v", was, err)
	}
}

// TestDiscardsAreCountedOnce takes what was counted before for no new gap, in the same
// activation alone.
func TestDiscardsAreCountedOnce(t *testing.T) {
	up := gapRecord{Boot: "b", DiskSeq: 7, Count: 3}
	off := Status{Era: 20, DiscardsDisabled: true}
	first, changed := gapRecord{}.next(up, off)
	if !changed || first.gap() != (Gap{21, ErrDiscards}) {
		t.Errorf("first: %+v", first)
	}
	if again, changed := first.next(up, Status{Era: 25, DiscardsDisabled: true}); changed {
		t.Errorf("again: %+v", again)
	}
	up.DiskSeq++
	if next, changed := first.next(up, Status{Era: 25, DiscardsDisabled: true}); !changed || next.End != 26 {
		t.Errorf("another activation: %+v", next)
	}
}
