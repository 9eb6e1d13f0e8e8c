//go:build linux

// Package eratrack_test runs in guests only (see package guest): mirrors of era
// devices, with the kernel's own dm-era as the tracker.
package eratrack_test

import (
	"context"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"testing"

	"tidemark/block"
	"tidemark/linux/dm"
	"tidemark/linux/dmera"
	"tidemark/linux/fsfreeze"
	"tidemark/linux/reexec"
	"tidemark/test/vm/guest"
	"tidemark/test/vm/guest/instant"
	"tidemark/track"
	"tidemark/track/era"
	"tidemark/transfer"
)

func TestMain(m *testing.M) {
	reexec.Main(fsfreeze.Watchdog, dmera.Step)
	guest.Main(m)
}

const (
	kib       = int64(1) << 10
	mib       = int64(1) << 20
	blockSize = 64 * kib
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
func (s *source) image() string    { return s.copy().Image() }
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

// copy is the mirror of the device.
func (s *source) copy() instant.Copy {
	return instant.Copy{Source: s.path(), Folder: s.folder, Open: func(ctx context.Context, d *block.Device) (track.Tracker, error) {
		return era.Open(ctx, d, s.options())
	}}
}

// mirrored makes one run, and wants one of the modes.
func (s *source) mirrored(t *testing.T, mode string) transfer.Report {
	t.Helper()
	return s.copy().Run(t, mode)
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
