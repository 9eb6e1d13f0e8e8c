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
	"tidemark/test/vm/guest"
	"tidemark/test/vm/guest/instant"
	"tidemark/test/vm/logwrites"
)

// Whenever the power is cut while a snapshot is made, used and destroyed, the origin is intact after
// the next boot, and nothing of the snapshot is left after the first command. Every write to the
// origin is logged, and the disk is made again as it was, or may have been, at a moment.
func TestPowerCutAtEveryStep(t *testing.T) {
	guest.Modprobe(t, "dm-log-writes")
	const size = 24 << 20
	part := func(name string, from, length int) string {
		return guest.Mapper(t, name, fmt.Sprintf("0 %d linear %s %d", length/sector, guest.Disk(t, "data"), from/sector))
	}
	disk, again, logDisk := part("disk", 0, size), part("again", size, size), part("log", 2*size, 64<<20)
	mkfs(t, "ext4", disk)
	base := instant.MustRead(t, disk)
	logCycles(t, disk, logDisk)
	log := readLog(t, logDisk)
	n := 0
	for replay := log.Replay(size); ; n++ {
		if _, more, err := replay.Advance(); err != nil {
			t.Fatal(err)
		} else if !more {
			break
		}
	}
	cuts, err := strconv.Atoi(os.Getenv("CUTS"))
	if err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 0))
	t.Logf("%d moments, of which %d are tried, seed %d", n, min(cuts, n), seed)
	bootAgain(t)
	b := bench{path: again, dev: guest.OpenDirect(t, again), at: t.TempDir(), has: instant.MustRead(t, again)}
	replay := log.Replay(size)
	copy(replay.Disk, base)
	begun, gone := false, false
	for left := n; left > 0; left-- {
		e, _, err := replay.Advance()
		if err != nil {
			t.Fatal(err)
		}
		begun, gone = begun || e.Name == "begin", gone || e.Name == "gone"
		if e.Name != "gone" && rng.IntN(left) >= cuts {
			continue
		}
		cuts--
		content := replay.Disk
		if rng.IntN(2) == 0 && e.Name != "gone" {
			if content, err = replay.Torn(rng); err != nil {
				t.Fatal(err)
			}
		}
		b.boot(t, content, begun, gone)
	}
	if !begun || !gone {
		t.Errorf("marks: begin %v, gone %v", begun, gone)
	}
}

// logCycles makes and destroys two snapshots of a logged disk with a filesystem: one whose record
// lies there, too, and one whose does not. When the second has gone, a mark says so.
func logCycles(t *testing.T, disk, logDisk string) {
	t.Helper()
	guest.Run(t, "dmsetup", "create", "logged", "--table", fmt.Sprintf("0 %s log-writes %s %s", guest.Sectors(t, disk), disk, logDisk))
	guest.Run(t, "dmsetup", "create", "X0", "--table", "0 "+guest.Sectors(t, disk)+" linear /dev/mapper/logged 0")
	at := t.TempDir()
	guest.Run(t, "mount", "/dev/mapper/X0", at)
	guest.WriteFile(t, at+"/known", "known")
	guest.Run(t, "sync")
	mark := func(name string) { guest.Run(t, "dmsetup", "message", "logged", "0", "mark "+name) }
	mark("begin")
	for _, state := range []string{at + "/state", options.StateDir} {
		guest.Run(t, "tidemark", "--state-dir", state, "snapshot", "create", "--name", "c", "--size", "4M", "--reserve", "1M", "--max-freeze", "1m", "/dev/mapper/X0")
		guest.Run(t, "dd", "if=/dev/urandom", "of="+at+"/used", "bs=16k", "count=64", "conv=notrunc,fsync", "status=none")
		guest.Run(t, "tidemark", "--state-dir", state, "snapshot", "destroy", "c")
	}
	mark("gone")
	guest.Run(t, "umount", at)
	guest.Run(t, "dmsetup", "remove", "--retry", "X0")
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

// bench is a disk on which disks are made again, and where it is mounted.
type bench struct {
	path string
	dev  *block.Device
	at   string
	has  []byte
}

// boot brings a content to the disk, opens the origin over it as a boot does, and runs the first
// command.
func (b *bench) boot(t *testing.T, content []byte, begun, gone bool) {
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
	guest.Run(t, "dmsetup", "create", "X0", "--table", "0 "+guest.Sectors(t, b.path)+" linear "+b.path+" 0")
	guest.Run(t, "mount", "/dev/mapper/X0", b.at)
	left, _ := filepath.Glob(b.at + "/.tidemark-*")
	records, _ := filepath.Glob(b.at + "/state/snapshots/*.json")
	if gone && len(left)+len(records) > 0 {
		t.Errorf("there again: %v %v", left, records)
	}
	if out := guest.Run(t, "tidemark", "--state-dir", b.at+"/state", "snapshot", "repair"); (len(records) > 0) != strings.Contains(out, "the machine was booted") {
		t.Errorf("%v: %s", records, out)
	}
	if len(records) > 0 {
		bare(t, b.at)
		if records, _ := filepath.Glob(b.at + "/state/snapshots/*.json"); len(records) > 0 {
			t.Errorf("left behind: %v", records)
		}
	}
	if got, err := os.ReadFile(b.at + "/known"); begun && (err != nil || string(got) != "known") {
		t.Errorf("%q, %v", got, err)
	}
	guest.Run(t, "umount", b.at)
	if out, err := exec.Command("e2fsck", "-fn", "/dev/mapper/X0").CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	guest.Run(t, "dmsetup", "remove", "--retry", "X0")
	b.has = instant.MustRead(t, b.path)
}
