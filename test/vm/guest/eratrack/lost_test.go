//go:build linux

package eratrack_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/linux/dmera"
	"tidemark/test/vm/guest"
)

// A mark that the metadata cannot vouch for is lost, with the reason, and the run
// compares instead.
func TestMarksAreLostLoudly(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(t *testing.T, s *source)
		mode string
		why  string
	}{
		{"nothing", func(*testing.T, *source) {}, "incremental", ""},
		{"closed and opened", func(t *testing.T, s *source) { s.removed(t); s.activate(t) }, "incremental", ""},
		{"checkpoints of others", func(t *testing.T, s *source) {
			for range 5 {
				guest.Run(t, "dmsetup", "message", s.name, "0", "checkpoint")
				scribble(t, s.path(), 3)
			}
		}, "incremental", ""},
		{"metadata made anew", func(t *testing.T, s *source) {
			s.removed(t)
			s.create(t)
			for range 40 { // soon in later eras than it was
				guest.Run(t, "dmsetup", "message", s.name, "0", "checkpoint")
			}
		}, "scan", ""},
		{"metadata put back", func(t *testing.T, s *source) {
			s.removed(t)
			saved := filepath.Join(s.folder, "meta")
			guest.Run(t, "dd", "if="+guest.Disk(t, "meta"), "of="+saved, "bs=1M")
			s.activate(t)
			s.mirrored(t, "incremental")
			scribble(t, s.path(), 10)
			s.mirrored(t, "incremental")
			scribble(t, s.path(), 10)
			s.removed(t)
			guest.Run(t, "dd", "if="+saved, "of="+guest.Disk(t, "meta"), "bs=1M", "oflag=direct", "conv=fsync")
			s.activate(t)
		}, "scan", "put back"},
		{"the data is another's", func(t *testing.T, s *source) {
			s.removed(t)
			guest.Run(t, "dd", "if=/dev/urandom", "of="+guest.Disk(t, "data"), "bs=1M", "count=24", "oflag=direct")
			s.activate(t)
		}, "scan", "not through the era device"},
		{"made again under its name, by another program", func(t *testing.T, s *source) {
			s.removed(t)
			other := guest.Mapper(t, "other", "0 "+guest.Sectors(t, guest.Disk(t, "meta"))+" linear "+guest.Disk(t, "meta")+" 0")
			guest.Mapper(t, s.name, "0 "+guest.Sectors(t, guest.Disk(t, "data"))+" era "+other+" "+guest.Disk(t, "data")+" 128")
			forbid(t, s)
		}, "scan", "nothing was remembered"}, // it has no UUID
		{"discards in a life before", func(t *testing.T, s *source) {
			table := "0 " + guest.Sectors(t, guest.Disk(t, "data")) + " era " + guest.Disk(t, "meta") + " " + guest.Disk(t, "data") + " 128"
			for _, args := range [][]string{{"reload", s.name, "--table", table}, {"suspend", s.name}, {"resume", s.name}} {
				guest.Run(t, "dmsetup", args...)
			}
			guest.Run(t, "blkdiscard", "-o", "1048576", "-l", "1048576", s.path())
			d, err := dmera.Open(s.ctl, s.name, dmera.Options{StateDir: s.stateDir()})
			if err != nil {
				t.Fatal(err)
			}
			if err := d.Remove(); err != nil {
				t.Fatal(err)
			}
			s.activate(t)
		}, "scan", "discards were let through"},
		{"grown", func(t *testing.T, s *source) {
			guest.Run(t, "dmsetup", "suspend", s.name)
			resize(t, s, 24)
			guest.Run(t, "dmsetup", "resume", s.name)
			forbid(t, s)
		}, "scan", "resized"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := made(t, "lost", t.TempDir())
			if c.why == "resized" {
				guest.Run(t, "dmsetup", "suspend", s.name)
				resize(t, s, 16)
				guest.Run(t, "dmsetup", "resume", s.name)
				forbid(t, s)
			}
			scribble(t, s.path(), 100)
			s.mirrored(t, "full")
			scribble(t, s.path(), 10)
			s.mirrored(t, "incremental")
			scribble(t, s.path(), 10)
			c.do(t, s)
			rep := s.mirrored(t, c.mode)
			if !strings.Contains(rep.MarkLost, c.why) || (c.mode == "scan") != (rep.MarkLost != "") {
				t.Errorf("the mark was lost because %q, want %q", rep.MarkLost, c.why)
			}
			scribble(t, s.path(), 3)
			s.mirrored(t, "incremental")
		})
	}
}

// resize loads a table for so many MiB.
func resize(t *testing.T, s *source, sizeMB int) {
	t.Helper()
	guest.Run(t, "dmsetup", "load", s.name, "--table",
		fmt.Sprintf("0 %d era %s %s %d", sizeMB*2048, guest.Disk(t, "meta"), guest.Disk(t, "data"), blockSize/512))
}

// forbid switches discards off, which a new table had switched on.
func forbid(t *testing.T, s *source) {
	t.Helper()
	guest.WriteFile(t, filepath.Join("/sys/block", s.disk(t), "queue/discard_max_bytes"), "0")
}

// scribble writes n times 4 KiB anywhere.
func scribble(t *testing.T, path string, n int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	buf := block.AlignedBuffer(4096)
	for range n {
		guest.Scramble(buf)
		if _, err := f.WriteAt(buf, rand.Int64N(size/4096)*4096); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}
