//go:build linux

package snapstore_test

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"tidemark/block"
	"tidemark/test/vm/guest"
)

// TestMeasure measures MEASURE times in turns how long we, and the kernel's merge, take for a
// store, and logs each figure as "figure KERNEL CASE WHO MiB/s". It needs a disk "master"; the
// host runs it for bench/run alone.
func TestMeasure(t *testing.T) {
	times, err := strconv.Atoi(os.Getenv("MEASURE"))
	if err != nil {
		t.Fatal(err)
	}
	guest.Modprobe(t, "dm-snapshot")
	const originSectors, storeSectors, written = 256 << 11, 144 << 11, 64 // the last in MiB
	disk, master := guest.Disk(t, "data"), guest.Disk(t, "master")
	origin := guest.Mapper(t, "m-origin", fmt.Sprintf("0 %d linear %s 0", originSectors, disk))
	store := guest.Mapper(t, "m-store", fmt.Sprintf("0 %d linear %s %d", storeSectors, disk, originSectors))
	table := func(target string, chunk int) string {
		return fmt.Sprintf("0 %d %s %s %s P %d", originSectors, target, origin, store, chunk)
	}
	for _, c := range []struct {
		name, rw string
		chunk    int // sectors
	}{{"4K-random", "randwrite", 8}, {"64K-random", "randwrite", 128}, {"4K-consecutive", "write", 8}} {
		fill(t, origin, originSectors>>11)
		fill(t, store, 1)
		guest.Run(t, "dmsetup", "create", "snap", "--table", table("snapshot", c.chunk))
		guest.Run(t, "fio", "--name=w", "--thread", "--filename=/dev/mapper/snap", "--rw="+c.rw, "--bs="+strconv.Itoa(c.chunk*512), "--direct=1",
			"--ioengine=libaio", "--iodepth=32", fmt.Sprintf("--io_size=%dM", written), "--refill_buffers", "--output=/dev/null")
		want := guest.Sum(t, "/dev/mapper/snap")
		guest.Run(t, "dmsetup", "remove", "--retry", "snap")
		guest.Run(t, "dd", "if="+store, "of="+master, "bs=1M", "iflag=direct", "oflag=direct")
		for range times {
			for _, who := range []string{"tidemark", "direct", "kernel"} {
				fill(t, origin, originSectors>>11)
				guest.Run(t, "dd", "if="+master, "of="+store, "bs=1M", "count="+strconv.Itoa(storeSectors>>11), "iflag=direct", "oflag=direct")
				began := time.Now()
				switch who {
				case "tidemark":
					guest.Run(t, "tidemark", "snapstore", "apply", store, origin)
				case "direct":
					guest.Run(t, "tidemark", "snapstore", "apply", "--direct", store, origin)
				case "kernel":
					guest.Run(t, "dmsetup", "create", "merging", "--table", table("snapshot-merge", c.chunk))
					untilMerged(t)
				}
				took := time.Since(began)
				if who == "kernel" {
					guest.Run(t, "dmsetup", "remove", "--retry", "merging")
				}
				t.Logf("figure %s %s %s %f", os.Getenv("KERNEL"), c.name, who, written/took.Seconds())
				if guest.Sum(t, origin) != want {
					t.Fatalf("%s, %s: the origin is not what the snapshot was", c.name, who)
				}
			}
		}
	}
}

// fill zeroes the first MiB of a device.
func fill(t *testing.T, path string, mib int) {
	t.Helper()
	d := guest.OpenDirect(t, path)
	defer d.Close()
	buf := block.AlignedBuffer(1 << 20)
	for i := range mib {
		if _, err := d.WriteAt(buf, int64(i)<<20); err != nil {
			t.Fatal(err)
		}
	}
}
