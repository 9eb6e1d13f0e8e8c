//go:build linux

package eratrack_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/linux/dmera"
	"tidemark/test/vm/guest"
)

// What is written past the filesystem that is mounted from the device is waited for as
// well: freezing does not.
func TestDrainWaitsForWritesPastTheFilesystem(t *testing.T) {
	guest.Modprobe(t, "dm-delay")
	data, meta := guest.Disk(t, "data"), guest.Disk(t, "meta")
	sectors := guest.Sectors(t, data)
	slow := guest.Mapper(t, "slow", "0 "+sectors+" linear "+data+" 0")
	s := &source{ctl: control(t), name: "drained", folder: t.TempDir()}
	d, err := dmera.Create(t.Context(), s.ctl, dmera.CreateOptions{Name: s.name, Data: slow, Meta: meta, BlockSize: blockSize, Force: true})
	if err != nil {
		t.Fatal(err)
	}
	closed(t, d)
	t.Cleanup(func() { s.removed(t) })
	s.mounted(t)
	guest.Run(t, "sync")
	delay := "0 " + sectors + " delay " + data + " 0 0 " + data + " 0 1500" // ms, of writes alone
	for _, args := range [][]string{{"reload", "slow", "--table", delay}, {"suspend", "slow"}, {"resume", "slow"}} {
		guest.Run(t, "dmsetup", args...)
	}
	tracker, err := s.opened(t)
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, tracker)
	raw, err := os.OpenFile(s.path(), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	const at = 23 << 20
	buf := block.AlignedBuffer(4096)
	copy(buf, "past the filesystem")
	done := make(chan error)
	go func() {
		_, err := raw.WriteAt(buf, at)
		done <- err
	}()
	for flying := ""; !strings.HasSuffix(flying, " 1"); {
		b, err := os.ReadFile(filepath.Join("/sys/block", s.disk(t), "inflight"))
		if err != nil {
			t.Fatal(err)
		}
		flying = strings.Join(strings.Fields(string(b)), " ")
	}
	if err := tracker.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	under, err := os.OpenFile(data, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer under.Close()
	got := block.AlignedBuffer(4096)
	if _, err := under.ReadAt(got, at); err != nil || !bytes.Equal(got, buf) {
		t.Errorf("the write had not reached the data when Drain returned (%v)", err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
