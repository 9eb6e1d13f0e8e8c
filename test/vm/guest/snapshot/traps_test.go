//go:build linux

package snapshot_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/snapshot"
	"tidemark/test/vm/guest"
	"tidemark/test/vm/guest/instant"
)

const (
	sector   = 512
	edgeSize = 24<<20 + 3*sector // its last block is none
)

// scribbler writes to a device past the page cache, and knows what it holds.
type scribbler struct {
	t   *testing.T
	dev *block.Device
	now []byte
}

// write writes random sectors, as many as lie on the device.
func (w *scribbler) write(off, length int64) {
	w.t.Helper()
	if length = min(length, edgeSize-off); length <= 0 {
		return
	}
	buf := block.AlignedBuffer(int(length))
	guest.Scramble(buf)
	if _, err := w.dev.WriteAt(buf, off); err != nil {
		w.t.Fatal(err)
	}
	copy(w.now[off:], buf)
}

// edges writes at the edges of the device and of some chunks: the first sector of one, the last one, and
// one on each side.
func (w *scribbler) edges(chunk int64) {
	w.t.Helper()
	last := int64(edgeSize) / chunk
	for _, n := range []int64{0, last - 1, last, rand.Int64N(last), rand.Int64N(last), rand.Int64N(last)} {
		w.write(n*chunk, sector)
		w.write((n+1)*chunk-sector, sector)
		w.write((n+1)*chunk-sector, 2*sector)
	}
	w.write(edgeSize-sector, sector)
	w.write(edgeSize-sector*int64(1+rand.IntN(7)), 7*sector)
}

// Writes to the edges of chunks and of the device, to its tail that is no whole block, of zeros, and
// discards do not show in the image, also after the store was grown; nor does what is written to an
// image show in the origin.
func TestWritesAtEveryEdge(t *testing.T) {
	path := guest.Mapper(t, "edges", fmt.Sprintf("0 %d linear %s 0", edgeSize/sector, guest.Disk(t, "data")))
	w := &scribbler{t: t, dev: guest.OpenDirect(t, path), now: make([]byte, edgeSize)}
	for off := int64(0); off < edgeSize; off += 4 << 20 {
		w.write(off, 4<<20)
	}
	for _, chunk := range []int64{4 << 10, 64 << 10, 1 << 20} {
		s, held := take(t, snapshot.Request{Chunk: chunk, Writable: true, Devices: []snapshot.Device{{Path: path, Store: "/stores-edges", Size: 12 << 20}}})
		v, image := s.Volumes[0], guest.OpenDirect(t, s.Image(s.Volumes[0]))
		seen := &scribbler{t: t, dev: image, now: held[0]}
		instant.Compare(t, w.now, held[0])
		w.edges(chunk)
		zero := rand.Int64N(edgeSize/sector-64) * sector
		guest.Run(t, "blkdiscard", "--zeroout", "--offset", fmt.Sprint(zero), "--length", fmt.Sprint(64*sector), path)
		clear(w.now[zero : zero+64*sector])
		if out, err := exec.Command("blkdiscard", path).CombinedOutput(); err == nil || !strings.Contains(string(out), "not supported") {
			t.Errorf("a discard: %v: %s", err, out)
		}
		instant.Compare(t, seen.now, instant.MustRead(t, s.Image(v)))
		if err := s.Grow(t.Context(), v, 32<<20); err != nil {
			t.Fatal(err)
		}
		w.edges(chunk)
		seen.edges(chunk)
		w.edges(chunk)
		instant.Compare(t, seen.now, instant.MustRead(t, s.Image(v)))
		instant.Compare(t, w.now, instant.MustRead(t, path))
		if st, err := s.Status(); err != nil || st.Lost != "" || st.Volumes[0].Total != 32<<20 {
			t.Errorf("%+v, %v", st, err)
		}
		image.Close()
		destroy(t, s)
		instant.Compare(t, w.now, instant.MustRead(t, path))
		guest.Run(t, "blkdiscard", "--offset", "0", "--length", fmt.Sprint(chunk), path) // they pass again
		w.write(0, chunk)
	}
	bare(t)
}

// An origin that is unmounted, mounted again and made read-only while there is a snapshot changes
// nothing of the image. A store inside it stays until it is mounted for writing.
func TestRemounts(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			name, at := origin(t, 0, kind)
			dev := "/dev/mapper/" + name
			guest.WriteFile(t, at+"/file", "before")
			s, held := take(t, snapshot.Request{Name: "m", Devices: []snapshot.Device{{Path: dev}}})
			image := s.Image(s.Volumes[0])
			for range 2 {
				guest.Run(t, "umount", at)
				instant.Compare(t, held[0], instant.MustRead(t, image))
				guest.Run(t, "mount", dev, at)
				guest.WriteFile(t, at+"/file", "after")
				guest.Run(t, "dd", "if=/dev/urandom", "of="+at+"/more", "bs=64k", "count=8", "oflag=direct", "status=none")
				guest.Run(t, "mount", "-o", "remount,ro", at)
				instant.Compare(t, held[0], instant.MustRead(t, image))
				guest.Run(t, "mount", "-o", "remount,rw", at)
			}
			there := t.TempDir()
			guest.Run(t, "mount", "-o", map[string]string{"ext4": "ro,noload", "xfs": "ro,norecovery,nouuid"}[kind], image, there)
			if got, err := os.ReadFile(there + "/file"); err != nil || string(got) != "before" {
				t.Errorf("%q, %v", got, err)
			}
			guest.Run(t, "umount", there)
			guest.Run(t, "umount", at)
			if out, err := exec.Command("tidemark", "snapshot", "destroy", "m").CombinedOutput(); err == nil || !strings.Contains(string(out), "no filesystem on it is mounted") {
				t.Errorf("%v: %s", err, out)
			}
			noDevices(t)
			guest.Run(t, "mount", "-o", "ro", dev, at)
			if out, err := exec.Command("tidemark", "snapshot", "repair").CombinedOutput(); err == nil || !strings.Contains(string(out), "read-only") {
				t.Errorf("%v: %s", err, out)
			}
			guest.Run(t, "mount", "-o", "remount,rw", at)
			guest.Run(t, "tidemark", "snapshot", "repair")
			bare(t, at)
		})
	}
}

// A filesystem that gets full while there is a snapshot of it, whose store and record lie there, too,
// gets its room back.
func TestAFullFilesystem(t *testing.T) {
	name, at := origin(t, 0, "ext4")
	dev := "/dev/mapper/" + name
	tidemark := func(args ...string) ([]byte, error) {
		return exec.Command("tidemark", append([]string{"--state-dir", at + "/state", "snapshot"}, args...)...).CombinedOutput()
	}
	guest.Run(t, "dd", "if=/dev/urandom", "of="+at+"/most", "bs=1M", "count=12", "oflag=direct", "status=none")
	for _, c := range []struct{ size, lost string }{{"16M", ""}, {"1M", "was full"}} {
		if out, err := tidemark("create", "--name", "f", "--size", c.size, "--reserve", "1M", "--max-freeze", "1m", dev); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if out, err := exec.Command("dd", "if=/dev/urandom", "of="+at+"/rest", "bs=256k", "status=none", "conv=fsync").CombinedOutput(); err == nil || !strings.Contains(string(out), "No space left") {
			t.Errorf("%v: %s", err, out)
		}
		out, err := tidemark("status", "f")
		if (err != nil) != (c.lost != "") || !strings.Contains(string(out), c.lost) {
			t.Errorf("%v: %s", err, out)
		}
		if c.lost == "" {
			guest.Run(t, "e2fsck", "-fn", dev+"+f")
		}
		if out, err := tidemark("create", "--name", "g", dev); err == nil || !strings.Contains(string(out), "too little room") {
			t.Errorf("%v: %s", err, out)
		}
		if out, err := tidemark("destroy", "f"); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		bare(t, at)
		if left, _ := filepath.Glob(at + "/state/snapshots/*"); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		if err := os.Remove(at + "/rest"); err != nil {
			t.Error(err)
		}
		unix.Sync()
	}
	guest.Run(t, "umount", at)
	guest.Run(t, "e2fsck", "-fn", dev)
	guest.Run(t, "mount", dev, at)
}
