//go:build linux

// Package eratrack_test runs in guests only (see package guest): mirrors of era
// devices, with the kernel's own dm-era as the tracker.
package eratrack_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"tidemark/block"
	"tidemark/format/state"
	"tidemark/linux/dm"
	"tidemark/linux/dmera"
	"tidemark/linux/fsfreeze"
	"tidemark/linux/reexec"
	"tidemark/test/vm/guest"
	"tidemark/track/era"
	"tidemark/transfer"
	"tidemark/transfer/mirror"
	"tidemark/transfer/transaction"
	"tidemark/view"
)

func TestMain(m *testing.M) {
	reexec.Main(fsfreeze.Watchdog, dmera.Step)
	guest.Main(m)
}

const (
	kib       = int64(1) << 10
	mib       = int64(1) << 20
	blockSize = 64 * kib
	piece     = 64 << 10
)

// source is an era device of the disks "data" and "meta", and its mirror.
type source struct {
	ctl    *dm.Control
	name   string
	folder string // of the mirror and all state
}

// made makes new metadata and the device, which is gone at the end of the test.
func made(t *testing.T, name, folder string) *source {
	t.Helper()
	s := &source{ctl: control(t), name: name, folder: folder}
	s.create(t)
	t.Cleanup(func() { s.removed(t) })
	return s
}

func control(t *testing.T) *dm.Control {
	t.Helper()
	ctl, err := dm.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ctl.Close() })
	return ctl
}

func (s *source) create(t *testing.T) {
	t.Helper()
	d, err := dmera.Create(t.Context(), s.ctl, dmera.CreateOptions{
		Name: s.name, Data: guest.Disk(t, "data"), Meta: guest.Disk(t, "meta"), BlockSize: blockSize, Force: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	closed(t, d)
}

func (s *source) activate(t *testing.T) {
	t.Helper()
	d, err := dmera.Activate(s.ctl, dmera.ActivateOptions{
		Name: s.name, Data: guest.Disk(t, "data"), Meta: guest.Disk(t, "meta"),
	})
	if err != nil {
		t.Fatal(err)
	}
	closed(t, d)
}

func closed(t *testing.T, c io.Closer) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

func (s *source) removed(t *testing.T) {
	t.Helper()
	if _, err := s.ctl.Info(s.name); errors.Is(err, dm.ErrNotFound) {
		return
	}
	guest.Run(t, "dmsetup", "remove", "--retry", s.name)
}

func (s *source) path() string     { return "/dev/mapper/" + s.name }
func (s *source) image() string    { return filepath.Join(s.folder, "mirror.img") }
func (s *source) stateDir() string { return filepath.Join(s.folder, "state") }

// disk is what the kernel calls the device.
func (s *source) disk(t *testing.T) string {
	t.Helper()
	id, err := block.Identify(s.path())
	if err != nil {
		t.Fatal(err)
	}
	return id.Disk
}

// opened opens the device and its tracker, for the time of the test.
func (s *source) opened(t *testing.T) (*era.Tracker, error) {
	t.Helper()
	disk, err := block.Open(s.path(), block.Options{Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closed(t, disk) })
	return era.Open(t.Context(), disk, s.options())
}

func (s *source) options() era.Options {
	return era.Options{StateDir: s.stateDir()}
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
	saw, err := readAll(h.s.path)
	h.s.saw = saw
	report, closeErr := h.View.Close()
	return report, errors.Join(err, closeErr)
}

func readAll(path string) ([]byte, error) {
	d, err := block.Open(path, block.Options{Direct: true})
	if err != nil {
		return nil, err
	}
	defer d.Close()
	all := block.AlignedBuffer(int(d.Size()))
	_, err = d.ReadAt(all, 0)
	return all, err
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	all, err := readAll(path)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// mirrored makes one run, compares every byte of the copy with the source at its
// instant, and wants one of the modes.
func (s *source) mirrored(t *testing.T, mode string) transfer.Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	disk, err := block.Open(s.path(), block.Options{Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	tracker, err := era.Open(ctx, disk, s.options())
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, tracker)
	store, shut := s.store(t, disk.Size(), tracker.Granularity())
	defer shut()
	provider, _, err := view.Choose(ctx, "auto", view.Options{Sources: []*block.Device{disk}, MaxFreeze: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	w := &seen{Provider: provider, path: s.path()}
	reports, err := transfer.Run(ctx, []*transfer.Pair{{
		Name: s.path(), Target: s.image(), Source: disk, Tracker: tracker, Owner: "test",
		Sink: &mirror.Sink{Store: store, Name: s.image()},
	}}, transfer.Options{View: w, MaxFreeze: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	copied := mustRead(t, s.image())
	rep := reports[0]
	t.Logf("%s (%s): %d passes, read %d KiB, wrote %d KiB, the comparison included frozen for %v",
		rep.Mode, rep.MarkLost, rep.Passes, rep.Read/kib, rep.Written/kib, rep.Frozen.Round(time.Millisecond))
	compare(t, w.saw, copied)
	if rep.Mode != mode {
		t.Fatalf("mode %s (%s), want %s", rep.Mode, rep.MarkLost, mode)
	}
	return rep
}

func compare(t *testing.T, want, got []byte) {
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

// store opens the mirror, and makes it the first time.
func (s *source) store(t *testing.T, size, granularity int64) (*mirror.Store, func()) {
	t.Helper()
	dir, err := transaction.OpenDir(filepath.Join(s.folder, "mirror"), true)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(s.image(), os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	closed(t, f)
	disk, err := block.Open(s.image(), block.Options{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	store, err := mirror.Open(transaction.Disk{Device: disk}, dir)
	if err != nil {
		t.Fatal(err)
	}
	if !store.Exists() {
		if err := store.Init(size, granularity, state.Source{Path: s.path()}, false); err != nil {
			t.Fatal(err)
		}
	}
	return store, func() {
		closed(t, store)
		closed(t, dir)
		closed(t, disk)
	}
}

// mounted makes a filesystem and mounts it for the length of the test.
func (s *source) mounted(t *testing.T) (at string, unmount func()) {
	t.Helper()
	guest.Run(t, "mkfs.ext4", "-q", s.path())
	return s.mount(t)
}

func (s *source) mount(t *testing.T) (at string, unmount func()) {
	t.Helper()
	at = t.TempDir()
	guest.Run(t, "mount", s.path(), at)
	up := true
	unmount = func() {
		if up {
			up = false
			guest.Run(t, "umount", at)
		}
	}
	t.Cleanup(unmount)
	return at, unmount
}

// checked checks the filesystem in a copy of the mirror: replaying the journal must
// not write to the mirror itself.
func (s *source) checked(t *testing.T) {
	t.Helper()
	copied := s.image() + ".copy"
	guest.Run(t, "cp", s.image(), copied)
	if out, err := exec.Command("e2fsck", "-fp", copied).CombinedOutput(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() > 1 {
			t.Fatalf("e2fsck: %v: %s", err, out)
		}
	}
	guest.Run(t, "e2fsck", "-fn", copied)
}

// load keeps a filesystem busy until the returned function is called.
func load(t *testing.T, at string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, "fio", "--name=load", "--thread", "--nice="+strconv.Itoa(guest.Niceness), "--directory="+at, "--rw=randrw", "--bsrange=4k-128k",
		"--size=5m", "--numjobs=2", "--iodepth=8", "--ioengine=libaio", "--direct=1", "--fsync=16", "--time_based", "--runtime=3600", "--output=/dev/null")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	up := true
	stop = func() {
		if up {
			up = false
			cancel()
			_ = cmd.Wait() // killed
		}
	}
	t.Cleanup(stop)
	return stop
}
