//go:build linux

package eratrack_test

import (
	"path/filepath"
	"strconv"
	"testing"

	"tidemark/test/vm/guest"
	"tidemark/test/vm/guest/instant"
)

// home mounts the disk where mirror and state are kept over restarts.
func home(t *testing.T) string {
	t.Helper()
	at := t.TempDir()
	guest.Run(t, "mount", guest.Disk(t, "home"), at)
	t.Cleanup(func() { guest.Run(t, "umount", at) })
	return at
}

// TestRestartBegin makes all, mirrors, and shuts down cleanly.
func TestRestartBegin(t *testing.T) {
	guest.Run(t, "mkfs.ext4", "-q", guest.Disk(t, "home"))
	s := made(t, "restart", home(t))
	at, unmount := s.mounted(t)
	stop := instant.Load(t, at)
	s.mirrored(t, "full")
	s.mirrored(t, "incremental")
	stop()
	unmount()
}

// TestRestartClean goes on after the clean shutdown, and then writes and mirrors
// until the host cuts the power.
func TestRestartClean(t *testing.T) {
	s := &source{ctl: control(t), name: "restart", folder: home(t)}
	s.activate(t)
	at, _ := s.mount(t)
	if rep := s.mirrored(t, "incremental"); rep.Read > 16*mib {
		t.Errorf("%d bytes were read", rep.Read)
	}
	s.checked(t)
	instant.Load(t, at)
	guest.Tell(t, "busy")
	for i := 0; ; i++ {
		guest.WriteFile(t, filepath.Join(at, "n"), strconv.Itoa(i))
		s.mirrored(t, "incremental")
		guest.Tell(t, "mirrored "+strconv.Itoa(i))
	}
}

// TestRestartCut goes on after the power cut.
func TestRestartCut(t *testing.T) {
	s := &source{ctl: control(t), name: "restart", folder: home(t)}
	s.activate(t)
	defer s.removed(t)
	s.mirrored(t, "incremental") // before the journal is replayed
	s.checked(t)
	_, unmount := s.mount(t)
	defer unmount()
	s.mirrored(t, "incremental")
}
