//go:build linux

// Package instant keeps devices busy in guests (see package guest), makes mirrors of them, and holds
// every byte of each against what the source was at its instant.
package instant

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"tidemark/block"
	"tidemark/format/state"
	"tidemark/track"
	"tidemark/transfer"
	"tidemark/transfer/mirror"
	"tidemark/transfer/transaction"
	"tidemark/view"
)

// piece is what differences are told in, in bytes.
const piece = 64 << 10

// Copy is a device and its mirror, in a folder.
type Copy struct {
	Source string // path of the device
	Folder string // of the image and its state
	Open   func(context.Context, *block.Device) (track.Tracker, error)
}

// Image is the path of the mirror.
func (c Copy) Image() string { return filepath.Join(c.Folder, "mirror.img") }

// Run makes one run, compares every byte of the copy with the source at its
// instant, and wants one of the modes.
func (c Copy) Run(t *testing.T, mode string) transfer.Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	disk, err := block.Open(c.Source, block.Options{Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	tracker, err := c.Open(ctx, disk)
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, tracker)
	store, shut := c.store(t, disk.Size(), tracker.Granularity())
	defer shut()
	provider, _, err := view.Choose(ctx, "auto", view.Options{Sources: []*block.Device{disk}, MaxFreeze: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	w := &seen{Provider: provider, path: c.Source}
	reports, err := transfer.Run(ctx, []*transfer.Pair{{
		Name: c.Source, Target: c.Image(), Source: disk, Tracker: tracker, Owner: "test",
		Sink: &mirror.Sink{Store: store, Name: c.Image()},
	}}, transfer.Options{View: w, MaxFreeze: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	copied := MustRead(t, c.Image())
	rep := reports[0]
	t.Logf("%s (%s): %d passes, read %d KiB, wrote %d KiB, the comparison included frozen for %v",
		rep.Mode, rep.MarkLost, rep.Passes, rep.Read>>10, rep.Written>>10, rep.Frozen.Round(time.Millisecond))
	Compare(t, w.saw, copied)
	if rep.Mode != mode {
		t.Fatalf("mode %s (%s), want %s", rep.Mode, rep.MarkLost, mode)
	}
	return rep
}

// store opens the mirror, and makes it the first time.
func (c Copy) store(t *testing.T, size, granularity int64) (*mirror.Store, func()) {
	t.Helper()
	dir, err := transaction.OpenDir(filepath.Join(c.Folder, "mirror"), true)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(c.Image(), os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	closed(t, f)
	disk, err := block.Open(c.Image(), block.Options{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	store, err := mirror.Open(transaction.Disk{Device: disk}, dir)
	if err != nil {
		t.Fatal(err)
	}
	if !store.Exists() {
		if err := store.Init(size, granularity, state.Source{Path: c.Source}, false); err != nil {
			t.Fatal(err)
		}
	}
	return store, func() {
		closed(t, store)
		closed(t, dir)
		closed(t, disk)
	}
}

// Compare fails the test where two contents differ.
func Compare(t *testing.T, want, got []byte) {
	t.Helper()
	if len(want) == 0 || len(want) != len(got) {
		t.Fatalf("the source has %d bytes, the copy %d", len(want), len(got))
	}
	wrong := 0
	for at := 0; at < len(want); at += piece {
		end := min(at+piece, len(want))
		if !bytes.Equal(want[at:end], got[at:end]) {
			if wrong++; wrong <= 5 {
				t.Errorf("the copy differs in the 64 KiB at offset %d", at)
			}
		}
	}
	if wrong > 0 {
		t.Fatalf("%d pieces differ", wrong)
	}
}

// seen is a view that reads the whole source once more just before it is released:
// what it finds is what the copy has to be.
type seen struct {
	view.Provider
	path string
	saw  []byte
}

type seenHeld struct {
	view.View
	s *seen
}

func (s *seen) Take(ctx context.Context, instant func(context.Context) error) (view.View, error) {
	v, err := s.Provider.Take(ctx, instant)
	if err != nil {
		return nil, err
	}
	return &seenHeld{v, s}, nil
}

func (h *seenHeld) Close() (view.Report, error) {
	saw, err := ReadAll(h.s.path)
	h.s.saw = saw
	report, closeErr := h.View.Close()
	return report, errors.Join(err, closeErr)
}

// ReadAll reads a file or device past the page cache.
func ReadAll(path string) ([]byte, error) {
	d, err := block.Open(path, block.Options{Direct: true})
	if err != nil {
		return nil, err
	}
	defer d.Close()
	all := block.AlignedBuffer(int(d.Size()))
	_, err = d.ReadAt(all, 0)
	return all, err
}

// MustRead is ReadAll that cannot fail.
func MustRead(t *testing.T, path string) []byte {
	t.Helper()
	all, err := ReadAll(path)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func closed(t *testing.T, c io.Closer) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}
