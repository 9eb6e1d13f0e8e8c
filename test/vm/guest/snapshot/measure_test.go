//go:build linux

package snapshot_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/test/vm/guest"
)

// TestMeasure measures what a snapshot costs, ours and lvm2's in turns, and logs each figure as
// "figure KERNEL CASE VALUE". It needs disks "data" and "store" for ours, and "pv" and "pv2" for
// lvm2's; the host runs it for bench/run alone.
func TestMeasure(t *testing.T) {
	guest.Modprobe(t, "dm-snapshot", "ext4")
	t.Run("wait", measureWait)
	t.Run("writes", measureWrites)
}

// measureWait logs 20 times the longest that a write of 4 KiB with O_DSYNC took while a snapshot was
// taken, in ms, of one and of three volumes, each of which is written to.
func measureWait(t *testing.T) {
	ours, oursAt := volumes(t, "ours", 3, 64)
	theirs, theirsAt := volumes(t, "lvm2", 3, 64)
	for _, n := range []int{1, 3} {
		for range 20 {
			for _, c := range []struct {
				who       string
				devs, ats []string
			}{{"none", nil, oursAt}, {"ours-same", ours, oursAt}, {"lvm2-same", theirs, theirsAt}} {
				stop, longest := make(chan struct{}), make(chan time.Duration, n)
				for _, at := range c.ats[:n] {
					f, buf := open(t, at+"/dsync"), block.AlignedBuffer(4096)
					go func() { longest <- write(t, f, buf, stop) }()
				}
				if c.who == "none" {
					time.Sleep(time.Second / 2) // about as long as taking one takes
				} else {
					begin(t, c.who, "8K", 24, c.devs[:n])
				}
				close(stop)
				var worst time.Duration
				for range n {
					worst = max(worst, <-longest)
				}
				figure(t, fmt.Sprintf("wait %d %s", n, c.who), float64(worst.Microseconds())/1000)
				if c.who != "none" {
					end(t, c.who, c.devs[:n])
				}
			}
		}
	}
}

// open returns a file of 1 MiB whose blocks are all written, until the end of the test.
func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_DSYNC, 0o600)
	if err == nil {
		_, err = f.WriteAt(make([]byte, 1<<20), 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// write writes to a file until it is told to stop, closes it, and returns how long the longest
// write took.
func write(t *testing.T, f *os.File, buf []byte, stop chan struct{}) (longest time.Duration) {
	defer f.Close()
	for i := int64(0); ; i++ {
		began := time.Now()
		if _, err := f.WriteAt(buf, i%256*4096); err != nil {
			t.Error(err)
			return longest
		}
		longest = max(longest, time.Since(began))
		select {
		case <-stop:
			return longest
		default:
		}
	}
}

// measureWrites logs MEASURE times the random writes a second of fio, each to a chunk of its own, and
// the same ones again, without a snapshot and with each kind.
func measureWrites(t *testing.T) {
	times, err := strconv.Atoi(os.Getenv("MEASURE"))
	if err != nil {
		t.Fatal(err)
	}
	const mib, writes, store = 96, 1500, 208 // of a file, to a file, of a store in MiB
	ours, oursAt := volumes(t, "ours", 1, 512)
	theirs, theirsAt := volumes(t, "lvm2", 1, 512)
	depths := []int{1, 16} // of the queues, each with a file of its own
	for _, at := range []string{oursAt[0], theirsAt[0]} {
		for _, depth := range depths {
			guest.Run(t, "dd", "if=/dev/zero", fmt.Sprintf("of=%s/%d", at, depth), "bs=1M", fmt.Sprintf("count=%d", mib), "oflag=direct", "conv=fsync", "status=none")
		}
	}
	for range times {
		for _, kib := range []int{4, 8, 64} {
			chunk := fmt.Sprintf("%dK", kib)
			for _, who := range []string{"ours-none", "lvm2-none", "ours-same", "lvm2-same", "ours-other", "lvm2-other"} {
				devs, at := ours, oursAt[0]
				if strings.HasPrefix(who, "lvm2") {
					devs, at = theirs, theirsAt[0]
				}
				if !strings.HasSuffix(who, "none") {
					begin(t, who, chunk, store, devs)
				}
				plans := map[int]string{}
				for _, depth := range depths {
					plans[depth] = plan(t, fmt.Sprintf("%s/%d", at, depth), rand.Perm(mib << 10 / kib)[:writes], kib<<10)
				}
				for _, depth := range depths {
					for _, which := range []string{"first", "second"} {
						out := guest.Run(t, "fio", "--minimal", "--name=w", "--thread", "--read_iolog="+plans[depth], "--direct=1", "--ioengine=libaio", fmt.Sprintf("--iodepth=%d", depth))
						iops, err := strconv.ParseFloat(strings.Split(out, ";")[48], 64) // HOWTO, "terse output"
						if err != nil {
							t.Fatalf("fio: %v\n%s", err, out)
						}
						figure(t, fmt.Sprintf("%s %d %s %s", chunk, depth, which, who), iops)
					}
				}
				if !strings.HasSuffix(who, "none") {
					full(t, devs[0], writes*len(depths)*kib)
					end(t, who, devs)
				}
			}
		}
	}
}

// plan writes a log for fio of one write of 4 KiB to each of these chunks of a file, and returns its
// path: with blockalign, fio would take some offsets twice.
func plan(t *testing.T, file string, chunks []int, size int) string {
	t.Helper()
	var log strings.Builder
	log.WriteString(fmt.Sprintf("fio version 2 iolog\n%s add\n%[1]s open\n", file))
	for _, c := range chunks {
		log.WriteString(fmt.Sprintf("%s write %d 4096\n", file, c*size))
	}
	path := filepath.Join(t.TempDir(), "log")
	guest.WriteFile(t, path, log.String()+file+" close\n")
	return path
}

// full checks that so much of a volume was copied, in KiB: that each write was the first to its
// chunk, but for a few where the file is in pieces.
func full(t *testing.T, dev string, kib int) {
	t.Helper()
	name := map[string]string{"/dev/mapper/m0": "m0+m+snap", "/dev/vg/m0": "vg-of--m0"}[dev]
	var begin, length, used int
	if _, err := fmt.Sscanf(guest.Run(t, "dmsetup", "status", name), "%d %d snapshot %d/", &begin, &length, &used); err != nil || used < 2*kib*99/100 {
		t.Errorf("%s: %d sectors are copied, %v", name, used, err)
	}
}

func figure(t *testing.T, name string, value float64) {
	t.Helper()
	t.Logf("figure %s %s %f", os.Getenv("KERNEL"), name, value)
}

// volumes makes n volumes with ext4, linear ones or lvm2's, and returns their paths and where they
// are mounted.
func volumes(t *testing.T, who string, n, mib int) (devs, folders []string) {
	t.Helper()
	if who == "lvm2" {
		pvs := []string{guest.Disk(t, "pv"), guest.Disk(t, "pv2")}
		guest.Run(t, "vgcreate", append([]string{"--quiet", "--yes", "vg"}, pvs...)...)
		t.Cleanup(func() { guest.Run(t, "vgremove", "--quiet", "--force", "--force", "--yes", "vg") })
	}
	for i := range n {
		name, at := fmt.Sprintf("m%d", i), t.TempDir()
		dev := "/dev/vg/" + name
		if who == "lvm2" {
			guest.Run(t, "lvcreate", "--quiet", "--yes", "--size", fmt.Sprintf("%dM", mib), "--name", name, "vg", guest.Disk(t, "pv"))
		} else {
			dev = guest.Mapper(t, name, fmt.Sprintf("0 %d linear %s %d", mib<<11, guest.Disk(t, "data"), i*mib<<11))
		}
		guest.Run(t, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", dev)
		guest.Run(t, "mount", dev, at)
		t.Cleanup(func() { guest.Run(t, "umount", at) })
		devs, folders = append(devs, dev), append(folders, at)
	}
	return devs, folders
}

// begin takes snapshots of volumes, with stores of that many MiB on the same disk or the other one.
func begin(t *testing.T, who, chunk string, mib int, devs []string) {
	t.Helper()
	size := fmt.Sprintf("%dM", mib)
	ours := []string{"snapshot", "create", "--name", "m", "--chunk", chunk, "--size", size, "--reserve", "1M", "--max-freeze", "1m"}
	switch who {
	case "ours-same":
		guest.Run(t, "tidemark", append(ours, devs...)...)
	case "ours-other":
		store := guest.Disk(t, "store")
		guest.Run(t, "dd", "if=/dev/zero", "of="+store, "bs=1M", "count=1", "oflag=direct", "status=none") // of the one before
		guest.Run(t, "tidemark", append(ours, "--store", store, devs[0])...)
	default:
		pv := guest.Disk(t, map[string]string{"lvm2-same": "pv", "lvm2-other": "pv2"}[who])
		for _, dev := range devs {
			guest.Run(t, "lvcreate", "--quiet", "--yes", "--snapshot", "--chunksize", chunk, "--size", size, "--name", "of-"+filepath.Base(dev), dev, pv)
		}
	}
}

// end ends what begin made.
func end(t *testing.T, who string, devs []string) {
	t.Helper()
	if strings.HasPrefix(who, "ours") {
		guest.Run(t, "tidemark", "snapshot", "destroy", "m")
		return
	}
	for _, dev := range devs {
		guest.Run(t, "lvremove", "--quiet", "--yes", "vg/of-"+filepath.Base(dev))
	}
}
