package bpf_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/track/bpf"
)

// What is tracked is the disk that the source was opened on, wherever its path leads.
func TestTrackerFollowsTheOpenSourceNotItsPath(t *testing.T) {
	opts := places(t)
	a, b := loopDisk(t, 16<<20), loopDisk(t, 16<<20)
	link := filepath.Join(t.TempDir(), "by-id")
	point := func(at string) {
		t.Helper()
		if err := os.Symlink(at, link+".new"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(link+".new", link); err != nil {
			t.Fatal(err)
		}
	}
	point(a)
	source, err := block.Open(link, block.Options{Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	point(b)
	if _, err := bpf.Attach(t.Context(), source, opts); !errors.Is(err, bpf.ErrNotTracked) {
		t.Fatalf("attached before tracking began: %v", err)
	}
	l, err := bpf.Open(t.Context(), source, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	m := cut(t, l)
	write(t, a, 4096, 4096, 1)
	write(t, b, 8192, 4096, 1)
	want := extent.Extent{Off: 4096, Len: 4096}
	wantChanges(t, l, m, "", want)
	point(a)
	wantChanges(t, l, m, "", want)
	point(b)
	asked, err := bpf.Attach(t.Context(), source, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer asked.Close()
	wantChanges(t, asked, m, "", want)
	list, err := bpf.List(t.Context(), opts)
	if err != nil || len(list) != 1 || list[0].Disk != filepath.Base(a) {
		t.Errorf("tracked: %+v, %v", list, err)
	}
}

// A source whose number is another disk's by now is refused: there is no telling which
// one is read.
func TestSourceThatHasBecomeAnotherDiskIsRefused(t *testing.T) {
	const loopChangeFD = 0x4c06 // LOOP_CHANGE_FD in include/uapi/linux/loop.h
	opts := places(t)
	dev := loop(t, sparse(t, 16<<20), "--read-only")
	l := open(t, dev, opts)
	m := cut(t, l)
	source, err := block.Open(dev, block.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	file, err := os.Open(sparse(t, 16<<20))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := unix.IoctlSetInt(int(source.File().Fd()), loopChangeFD, int(file.Fd())); err != nil {
		t.Fatal(err)
	}
	_, err = l.Changes(t.Context(), m, "")
	wantLost(t, err, "re-plugged (diskseq")
	wantLost(t, l.Vouch(t.Context(), m), "re-plugged (diskseq")
	for name, open := range map[string]func() (*bpf.Tracker, error){
		"open":   func() (*bpf.Tracker, error) { return bpf.Open(t.Context(), source, opts) },
		"attach": func() (*bpf.Tracker, error) { return bpf.Attach(t.Context(), source, opts) },
	} {
		if _, err := open(); err == nil || !strings.Contains(err.Error(), "when it was opened") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestImageIsRefused(t *testing.T) {
	image, err := block.Open(sparse(t, 16<<20), block.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	if _, err := bpf.Open(t.Context(), image, places(t)); !errors.Is(err, block.ErrNotBlockDevice) {
		t.Error(err)
	}
}
