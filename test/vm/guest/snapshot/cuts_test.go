//go:build linux

package snapshot_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/snapshot"
	"tidemark/test/vm/guest"
	"tidemark/test/vm/guest/instant"
	"tidemark/test/vm/logwrites"
)

// The disk that is logged: a filesystem that stands for root's, with the records of persistent snapshots,
// and the origin.
const (
	rootSize   = 4 << 20
	originSize = 24 << 20
	loggedSize = rootSize + originSize
)

// part is a device over a part of the disk "data", in bytes.
func part(t *testing.T, name string, from, length int) string {
	t.Helper()
	return guest.Mapper(t, name, fmt.Sprintf("0 %d linear %s %d", length/sector, guest.Disk(t, "data"), from/sector))
}

// asked is how many moments of a snapshot's life the host wants to be tried.
func asked(t *testing.T) int {
	t.Helper()
	n, err := strconv.Atoi(os.Getenv("CUTS"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Whenever the power is cut while a snapshot is made, used and destroyed, the origin is intact after
// the next boot, and nothing of the snapshot is left after the first command. A persistent one is what
// it was, or is not there; a rollback to it goes on. Every write is logged, and the disk is made again as
// it was, or may have been, at a moment.
func TestPowerCutAtEveryStep(t *testing.T) {
	guest.Modprobe(t, "dm-log-writes")
	disk, again, logDisk := part(t, "disk", 0, loggedSize), part(t, "again", loggedSize, loggedSize), part(t, "log", 2*loggedSize, 64<<20)
	openHalves(t, disk)
	mkfs(t, "ext4", "/dev/mapper/root")
	mkfs(t, "ext4", "/dev/mapper/X0")
	closeHalves(t)
	base := instant.MustRead(t, disk)
	b := bench{path: again, dev: guest.OpenDirect(t, again), at: t.TempDir(), has: instant.MustRead(t, again), truths: map[string]truth{}}
	b.log(t, disk, logDisk)
	log := readLog(t, logDisk)
	n := 0
	for replay := log.Replay(loggedSize); ; n++ {
		if _, more, err := replay.Advance(); err != nil {
			t.Fatal(err)
		} else if !more {
			break
		}
	}
	cuts := asked(t)
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 0))
	t.Logf("%d moments, of which %d are tried, seed %d", n, min(cuts, n), seed)
	bootAgain(t)
	replay := log.Replay(loggedSize)
	copy(replay.Disk, base)
	for left := n; left > 0; left-- {
		e, _, err := replay.Advance()
		if err != nil {
			t.Fatal(err)
		}
		if e.Name != "" {
			b.seen = append(b.seen, e.Name)
		}
		b.steady = len(b.seen) > 0 && b.seen[len(b.seen)-1] == "kept" || e.Name == "noted"
		always := slices.Contains([]string{"gone", "kept", "noted", "merging"}, e.Name)
		if !always && rng.IntN(left) >= cuts {
			continue
		}
		cuts--
		content := replay.Disk
		if rng.IntN(2) == 0 && !always {
			if content, err = replay.Torn(rng); err != nil {
				t.Fatal(err)
			}
		}
		b.boot(t, content)
	}
	if !slices.Contains(b.seen, "back") {
		t.Errorf("marks: %v", b.seen)
	}
}

// openHalves opens what stands for root, and the origin, on a disk.
func openHalves(t *testing.T, disk string) {
	t.Helper()
	guest.Run(t, "dmsetup", "create", "root", "--table", fmt.Sprintf("0 %d linear %s 0", rootSize/sector, disk))
	guest.Run(t, "dmsetup", "create", "X0", "--table", fmt.Sprintf("0 %d linear %s %d", originSize/sector, disk, rootSize/sector))
}

func closeHalves(t *testing.T) {
	t.Helper()
	guest.Run(t, "dmsetup", "remove", "--retry", "X0")
	guest.Run(t, "dmsetup", "remove", "--retry", "root")
}

// mountRoot mounts what stands for root where the records of persistent snapshots are.
func mountRoot(t *testing.T) {
	t.Helper()
	if err := os.MkdirAll("/etc/tidemark", 0o755); err != nil {
		t.Fatal(err)
	}
	guest.Run(t, "mount", "/dev/mapper/root", "/etc/tidemark")
}

// truth is what a persistent snapshot holds.
type truth struct {
	held  []byte
	store []extent.Extent // its own, which reads as zeros
}

// same fails unless a device holds what a snapshot does.
func (b *bench) same(t *testing.T, path, name string) {
	t.Helper()
	got := instant.MustRead(t, path)
	for _, e := range b.truths[name].store {
		clear(got[e.Off:e.End()])
	}
	instant.Compare(t, b.truths[name].held, got)
}

// log makes, uses and destroys snapshots of a logged disk: one that is volatile, whose record lies there,
// too; one that is persistent, over an unmount; and one that is rolled back to. Marks tell what has been
// done.
func (b *bench) log(t *testing.T, disk, logDisk string) {
	t.Helper()
	guest.Run(t, "dmsetup", "create", "logged", "--table", fmt.Sprintf("0 %s log-writes %s %s", guest.Sectors(t, disk), disk, logDisk))
	openHalves(t, "/dev/mapper/logged")
	mountRoot(t)
	dev := "/dev/mapper/X0"
	guest.Run(t, "mount", dev, b.at)
	guest.WriteFile(t, b.at+"/known", "known")
	guest.Run(t, "sync")
	mark := func(name string) { guest.Run(t, "dmsetup", "message", "logged", "0", "mark "+name) }
	use := func() {
		guest.Run(t, "dd", "if=/dev/urandom", "of="+b.at+"/used", "bs=16k", "count=24", "conv=notrunc,fsync", "status=none")
	}
	repair := func() { guest.Run(t, "tidemark", "snapshot", "repair") }
	last := func(name string) {
		s, held := take(t, snapshot.Request{Name: name, Persistent: true, Reserve: 1 << 20, Devices: []snapshot.Device{{Path: dev, Size: 4 << 20}}})
		b.truths[name] = truth{held[0], s.Volumes[0].Store.Extents}
	}
	mark("begin")
	guest.Run(t, "tidemark", "--state-dir", b.at+"/state", "snapshot", "create", "--name", "c", "--size", "4M", "--reserve", "1M", "--max-freeze", "1m", dev)
	use()
	guest.Run(t, "tidemark", "--state-dir", b.at+"/state", "snapshot", "destroy", "c")
	mark("gone")
	last("p")
	mark("kept")
	use()
	mark("unmounting")
	guest.Run(t, "umount", b.at)
	repair()
	mark("noted")
	guest.Run(t, "mount", dev, b.at)
	repair()
	mark("kept")
	use()
	mark("destroying")
	guest.Run(t, "tidemark", "snapshot", "destroy", "p")
	mark("destroyed")
	last("r")
	use()
	guest.Run(t, "umount", b.at)
	repair()
	s, err := snapshot.Find(options, "r")
	if err == nil {
		err = s.RollBack(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	mark("merging")
	b.same(t, dev, "r")
	guest.Run(t, "tidemark", "snapshot", "rollback", "r")
	mark("mounting")
	guest.Run(t, "mount", dev, b.at)
	repair()
	guest.Run(t, "sync")
	mark("back")
	guest.Run(t, "umount", b.at)
	guest.Run(t, "umount", "/etc/tidemark")
	closeHalves(t)
	guest.Run(t, "dmsetup", "remove", "--retry", "logged")
}

func readLog(t *testing.T, path string) *logwrites.Log {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	log, err := logwrites.Read(f, 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	return log
}

// bootAgain has everybody see another boot from now on, until the end of the test.
func bootAgain(t *testing.T) {
	t.Helper()
	const path = "/proc/sys/kernel/random/boot_id"
	other := filepath.Join(t.TempDir(), "boot_id")
	guest.WriteFile(t, other, "00000000-0000-0000-0000-000000000000\n")
	guest.Run(t, "mount", "--bind", other, path)
	t.Cleanup(func() { guest.Run(t, "umount", path) })
}

// bench is a disk on which disks are made again, and where the origin is mounted.
type bench struct {
	path   string
	dev    *block.Device
	at     string
	has    []byte
	truths map[string]truth
	seen   []string // marks
	steady bool     // a snapshot is there, and nobody mounts or unmounts the origin
}

// boot brings a content to the disk, opens the origin over it as a boot does, and runs the first
// command.
func (b *bench) boot(t *testing.T, content []byte) {
	t.Helper()
	const piece = 64 << 10
	buf := block.AlignedBuffer(piece)
	for off := 0; off < len(content); off += piece {
		if now := content[off : off+piece]; !slices.Equal(b.has[off:off+piece], now) {
			copy(buf, now)
			if _, err := b.dev.WriteAt(buf, int64(off)); err != nil {
				t.Fatal(err)
			}
			copy(b.has[off:], now)
		}
	}
	openHalves(t, b.path)
	mountRoot(t)
	b.assemble(t)
	guest.Run(t, "mount", "/dev/mapper/X0", b.at)
	left, _ := filepath.Glob(b.at + "/.tidemark-c")
	records, _ := filepath.Glob(b.at + "/state/snapshots/*.json")
	if slices.Contains(b.seen, "gone") && len(left)+len(records) > 0 {
		t.Errorf("there again: %v %v", left, records)
	}
	if out := guest.Run(t, "tidemark", "--state-dir", b.at+"/state", "snapshot", "repair"); (len(records) > 0) != strings.Contains(out, "the machine was booted") {
		t.Errorf("%v: %s", records, out)
	}
	b.end(t)
	bare(t, b.at)
	if records, _ := filepath.Glob(b.at + "/state/snapshots/*.json"); len(records) > 0 {
		t.Errorf("left behind: %v", records)
	}
	if got, err := os.ReadFile(b.at + "/known"); slices.Contains(b.seen, "begin") && (err != nil || string(got) != "known") {
		t.Errorf("%q, %v", got, err)
	}
	guest.Run(t, "umount", b.at)
	if out, err := exec.Command("e2fsck", "-fn", "/dev/mapper/X0").CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	guest.Run(t, "umount", "/etc/tidemark")
	closeHalves(t)
	b.has = instant.MustRead(t, b.path)
	if t.Failed() {
		t.Fatalf("after the marks %v", b.seen)
	}
}

// assemble does what "boot open" does, before anything is mounted. Where nobody was about to mount or
// unmount the origin when the power was cut, the snapshot is there; everywhere it is what it was, or
// dropped.
func (b *bench) assemble(t *testing.T) {
	t.Helper()
	done, err := snapshot.Assemble(t.Context(), options, "X0", 0)
	if err != nil {
		t.Error(err)
	}
	kept := false
	for _, s := range persistent(t) {
		v := s.Volumes[0]
		switch {
		case s.Rollback && !slices.Contains(b.seen, "mounting"):
			b.same(t, "/dev/mapper/X0", s.Name)
		case s.Up && !s.Rollback && v.Dropped == "":
			kept = true
			b.same(t, s.Image(v), s.Name)
		}
	}
	if b.steady && !kept {
		t.Errorf("the snapshot is not there: %v", done)
	}
}

// persistent returns the persistent snapshots.
func persistent(t *testing.T) []*snapshot.Snapshot {
	t.Helper()
	list, err := snapshot.List(options)
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(list, func(s *snapshot.Snapshot) bool { return !s.Persistent })
}

// end ends the persistent snapshots, which the journal's replay has left as they were.
func (b *bench) end(t *testing.T) {
	t.Helper()
	for _, s := range persistent(t) {
		if s.Rollback {
			guest.Run(t, "tidemark", "snapshot", "rollback", s.Name)
			continue
		}
		if v := s.Volumes[0]; v.Dropped == "" {
			b.same(t, s.Image(v), s.Name)
		}
		guest.Run(t, "tidemark", "snapshot", "destroy", s.Name)
	}
}
