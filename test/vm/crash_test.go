package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/format/state"
	"tidemark/test/vm/content"
	"tidemark/track"
	"tidemark/transfer"
	"tidemark/transfer/mirror"
	"tidemark/transfer/transaction"
	"tidemark/view"
)

// crashBench opens the mirrors on disks that lost their power, on loop devices of this
// machine.
type crashBench struct {
	kind   string
	file   *os.File
	state  string // device with the filesystem
	target string // device, "" when the mirror is an image on that filesystem
	at     string // where the filesystem is mounted
	buf    []byte
}

func newCrashBench(t *testing.T, kind string) *crashBench {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "tidemark-crash-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b := &crashBench{kind: kind, at: filepath.Join(dir, "mnt"), buf: make([]byte, 1<<20)}
	if b.file, err = os.Create(filepath.Join(dir, "disk")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.file.Close() })
	if err := errors.Join(b.file.Truncate(loggedSize), os.Mkdir(b.at, 0o700)); err != nil {
		t.Fatal(err)
	}
	start := int64(0)
	if kind == "device" {
		start = content.Size
		b.target = attach(t, b.file.Name(), 0, content.Size)
	}
	b.state = attach(t, b.file.Name(), start, loggedSize-start)
	return b
}

// attach makes a loop device of a part of a file.
func attach(t *testing.T, path string, off, size int64) string {
	t.Helper()
	out, err := exec.Command("losetup", "--find", "--show",
		"--offset", fmt.Sprint(off), "--sizelimit", fmt.Sprint(size), path).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v\n%s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v\n%s", err, out)
		}
	})
	return device
}

// crash puts the content of a disk on the bench, judges the mirror on it, and returns
// what it was: "old" or "new" of a run, or a first copy in the making.
func (b *crashBench) crash(t *testing.T, when string, disk []byte, h *history) (found string) {
	t.Helper()
	if err := b.load(disk); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(b.state, b.at, "ext4", 0, ""); err != nil {
		t.Fatalf("%s: mount: %v", when, err)
	}
	found, err := b.judge(t.Context(), h)
	if err := unix.Unmount(b.at, 0); err != nil {
		t.Fatalf("%s: umount: %v", when, err)
	}
	if err != nil {
		t.Fatalf("%s, the target should be step %d or %d: %v", when, h.oldest, h.newest, err)
	}
	return found
}

// load writes what differs.
func (b *crashBench) load(disk []byte) error {
	for at := 0; at < len(disk); at += len(b.buf) {
		part := disk[at : at+len(b.buf)]
		if _, err := b.file.ReadAt(b.buf, int64(at)); err != nil {
			return err
		}
		if bytes.Equal(part, b.buf) {
			continue
		}
		if _, err := b.file.WriteAt(part, int64(at)); err != nil {
			return err
		}
	}
	return nil
}

// judge opens the mirror, which finishes or discards what the cut left.
func (b *crashBench) judge(ctx context.Context, h *history) (found string, err error) {
	target, folder := b.target, ""
	if b.kind == "image" {
		target = filepath.Join(b.at, "mirror.img")
		folder = target + ".tidemark"
	} else if all, err := filepath.Glob(filepath.Join(b.at, "devices", "*")); err != nil || len(all) > 1 {
		return "", fmt.Errorf("folders %v: %w", all, err)
	} else if len(all) == 1 {
		folder = all[0]
	}
	dir, err := transaction.OpenDir(folder, false)
	if h.oldest < 0 && errors.Is(err, fs.ErrNotExist) {
		return "nothing yet", nil
	}
	if err != nil {
		return "", err
	}
	defer dir.Close()
	disk, err := block.Open(target, block.Options{Write: true})
	if err != nil {
		return "", err
	}
	defer disk.Close()
	store, err := mirror.Open(transaction.Disk{Device: disk}, dir)
	if err != nil {
		return "", err
	}
	defer store.Close()
	if h.oldest < 0 && !store.Exists() {
		return "nothing yet", nil
	}
	if found, err = h.find(ctx, store, disk); err != nil {
		return "", err
	}
	return found, h.next(ctx, store, disk)
}

// find tells which content the recovered mirror has, and whether its checksums agree.
func (h *history) find(ctx context.Context, store *mirror.Store, disk *block.Device) (string, error) {
	have := make([]byte, content.Size)
	n, err := disk.ReadAt(have, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	if err := intact(ctx, store); err != nil {
		return "", err
	}
	if st := store.State(); !st.Complete {
		if h.oldest >= 0 || !bytes.Equal(have[:st.Copied], h.contents[h.newest][:st.Copied]) {
			return "", fmt.Errorf("unfinished, copied up to byte %d", st.Copied)
		}
		return "unfinished", nil
	}
	switch {
	case n < content.Size:
		return "", fmt.Errorf("the target has %d bytes", n)
	case bytes.Equal(have, h.contents[h.newest]):
		return fmt.Sprintf("run %d new", h.newest), nil
	case h.oldest >= 0 && bytes.Equal(have, h.contents[h.oldest]):
		return fmt.Sprintf("run %d old", h.newest), nil
	}
	return "", fmt.Errorf("neither old nor new: %s", h.describe(have))
}

// describe tells how many blocks of a content are of which step.
func (h *history) describe(have []byte) string {
	const piece = 4096
	counts := map[string]int{}
	for at := 0; at < len(have); at += piece {
		var of strings.Builder
		for step, c := range h.contents {
			if bytes.Equal(have[at:at+piece], c[at:at+piece]) {
				of.WriteString(fmt.Sprint(" ", step))
			}
		}
		counts["of steps"+of.String()]++
	}
	return fmt.Sprint(counts)
}

// next makes the run after the cut, which compares everything: where the mirror says
// that it holds a block already, it had better.
func (h *history) next(ctx context.Context, store *mirror.Store, disk *block.Device) error {
	want := h.contents[h.newest]
	_, err := transfer.Run(ctx, []*transfer.Pair{{
		Name: "source", Target: "target", Source: still(want), Tracker: track.NewScan(content.Size),
		Sink: &mirror.Sink{Store: store, Name: "target", Origin: state.Source{Path: "source"}},
	}}, transfer.Options{View: nobody{still(want)}})
	if err != nil {
		return fmt.Errorf("the next run: %w", err)
	}
	have := make([]byte, content.Size)
	if _, err := disk.ReadAt(have, 0); err != nil {
		return err
	}
	if !bytes.Equal(have, want) {
		return fmt.Errorf("after the next run: %s", h.describe(have))
	}
	if !store.State().Complete {
		return errors.New("after the next run it is not complete")
	}
	return intact(ctx, store)
}

// intact holds the mirror against its checksums.
func intact(ctx context.Context, store *mirror.Store) error {
	bad, err := store.Check(ctx, nil)
	if err == nil && !bad.Empty() {
		err = fmt.Errorf("%d bytes differ from their checksums, in %v", bad.Bytes(), bad.Extents())
	}
	return err
}

// still is a source that does not change.
type still []byte

func (s still) ReadAt(p []byte, off int64) (int, error)  { return bytes.NewReader(s).ReadAt(p, off) }
func (s still) Size() int64                              { return int64(len(s)) }
func (s still) CurrentSize() (int64, error)              { return int64(len(s)), nil }
func (s still) Data(e extent.Extent) (extent.Set, error) { return extent.NewSet(e), nil }

// nobody is the view of a source that nobody writes to.
type nobody struct{ source still }

func (nobody) Kind() string                { return "offline" }
func (nobody) Traits() view.Traits         { return view.Traits{} }
func (nobody) Flush(context.Context) error { return nil }

func (n nobody) Take(ctx context.Context, instant func(context.Context) error) (view.View, error) {
	return nobodyHeld{n, time.Now()}, instant(ctx)
}

type nobodyHeld struct {
	nobody
	since time.Time
}

func (h nobodyHeld) Source(int) view.Source    { return h.source }
func (h nobodyHeld) Since() time.Time          { return h.since }
func (nobodyHeld) Broken() <-chan struct{}     { return nil }
func (nobodyHeld) Close() (view.Report, error) { return view.Report{}, nil }
