//go:build linux

// Package tracker_test runs in guests only (see package guest): the tracker must see
// every write on the block devices of real kernels, whatever they are stacked of.
package tracker_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"testing"

	"tidemark/test/vm/guest"
	"tidemark/track/bpf"
)

// TestMain keeps one disk tracked all the time, so that the programs are loaded once.
func TestMain(m *testing.M) {
	if guest.Inside() {
		disk, err := guest.FindDisk("keep")
		if err != nil {
			log.Fatal(err)
		}
		l, err := openPath(context.Background(), disk, bpf.Options{})
		if err != nil {
			log.Fatalf("%+v", err)
		}
		defer l.Close()
	}
	guest.Main(m)
}

// stack is a kind of block device the tracker has to work on.
type stack struct {
	name string
	make func(t testing.TB) string // returns the device
}

// stacks are the devices on which random writes are safe anywhere.
func stacks() []stack {
	return []stack{
		{"virtio-blk", func(t testing.TB) string { return guest.Disk(t, "data") }},
		{"virtio-scsi", func(t testing.TB) string { return guest.Disk(t, "scsi") }},
		{"nvme", func(t testing.TB) string { return guest.Disk(t, "nvme") }},
		{"nvme multipath", func(t testing.TB) string { return guest.Disk(t, "paths") }},
		{"dm-linear", linear},
		{"dm-crypt", crypt},
		{"dm-thin", thin},
		{"dm-era", era},
		{"dm-snapshot-origin", origin},
		{"dm-delay", delayed},
		{"zram", zram},
		{"brd", ramDisk},
		{"null_blk", nullBlock},
		{"md raid0", func(t testing.TB) string { return array(t, "raid0") }},
		{"md raid1", func(t testing.TB) string { return array(t, "raid1") }},
		{"md raid5", func(t testing.TB) string { return array(t, "raid5") }},
		{"dm-raid1", raid},
		{"loop", loop},
	}
}

// linear swaps the halves of a disk, so that bios are split and remapped.
func linear(t testing.TB) string {
	disk := guest.Disk(t, "data")
	return guest.Mapper(t, "linear", "0 49152 linear "+disk+" 49152\n49152 49152 linear "+disk+" 0")
}

func crypt(t testing.TB) string {
	guest.Modprobe(t, "dm-crypt")
	key := "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
	return guest.Mapper(t, "crypt", "0 98304 crypt aes-xts-plain64 "+key+" 0 "+guest.Disk(t, "data")+
		" 0 1 allow_discards")
}

func thin(t testing.TB) string {
	guest.Modprobe(t, "dm-thin-pool")
	disk := guest.Disk(t, "data")
	meta := guest.Mapper(t, "thinmeta", "0 8192 linear "+disk+" 0")
	guest.Run(t, "blkdiscard", "-z", meta)
	data := guest.Mapper(t, "thindata", "0 98304 linear "+disk+" 8192")
	pool := guest.Mapper(t, "pool", "0 98304 thin-pool "+meta+" "+data+" 128 0")
	guest.Run(t, "dmsetup", "message", pool, "0", "create_thin 0")
	return guest.Mapper(t, "thin", "0 81920 thin "+pool+" 0")
}

func era(t testing.TB) string {
	guest.Modprobe(t, "dm-era")
	disk := guest.Disk(t, "data")
	meta := guest.Mapper(t, "erameta", "0 8192 linear "+disk+" 0")
	guest.Run(t, "blkdiscard", "-z", meta)
	data := guest.Mapper(t, "eradata", "0 81920 linear "+disk+" 8192")
	return guest.Mapper(t, "era", "0 81920 era "+meta+" "+data+" 128")
}

func origin(t testing.TB) string {
	guest.Modprobe(t, "dm-snapshot")
	disk := guest.Disk(t, "data")
	store := guest.Mapper(t, "store", "0 40960 linear "+disk+" 0")
	guest.Run(t, "blkdiscard", "-z", store)
	data := guest.Mapper(t, "snapdata", "0 40960 linear "+disk+" 40960")
	o := guest.Mapper(t, "origin", "0 40960 snapshot-origin "+data)
	guest.Mapper(t, "snap", "0 40960 snapshot "+data+" "+store+" P 8")
	return o
}

// delayed completes writes 20 ms after they were queued.
func delayed(t testing.TB) string {
	guest.Modprobe(t, "dm-delay")
	disk := guest.Disk(t, "data")
	return guest.Mapper(t, "delay", "0 98304 delay "+disk+" 0 0 "+disk+" 0 20")
}

func zram(t testing.TB) string {
	guest.Modprobe(t, "zram")
	guest.WriteFile(t, "/sys/block/zram0/disksize", "48M")
	t.Cleanup(func() { guest.WriteFile(t, "/sys/block/zram0/reset", "1") })
	return "/dev/zram0"
}

func ramDisk(t testing.TB) string {
	guest.Run(t, "modprobe", "brd", "rd_nr=1", "rd_size=49152")
	t.Cleanup(func() { guest.Run(t, "rmmod", "brd") })
	return "/dev/ram0"
}

func nullBlock(t testing.TB) string {
	return nullDevice(t, map[string]string{"size": "48", "discard": "1", "submit_queues": "2"})
}

// array makes an md of two halves of a disk.
func array(t testing.TB, level string) string {
	m := members(t)
	return guest.Array(t, level, m[:]...)
}

// raid is a mirror of two halves of a disk, without metadata.
func raid(t testing.TB) string {
	guest.Modprobe(t, "dm-raid")
	m := members(t)
	return guest.Mapper(t, "raid", "0 49152 raid raid1 2 0 nosync 2 - "+m[0]+" - "+m[1])
}

// members are the halves of a disk, zeroed: nobody else makes them agree.
func members(t testing.TB) [2]string {
	disk := guest.Disk(t, "data")
	m := [2]string{
		guest.Mapper(t, "member0", "0 49152 linear "+disk+" 0"),
		guest.Mapper(t, "member1", "0 49152 linear "+disk+" 49152"),
	}
	for _, member := range m {
		guest.Run(t, "blkdiscard", "-z", member)
	}
	return m
}

func loop(t testing.TB) string {
	file := filepath.Join(t.TempDir(), "disk")
	guest.WriteFile(t, file, "")
	if err := os.Truncate(file, 48<<20); err != nil {
		t.Fatal(err)
	}
	return guest.Loop(t, file, "--direct-io=on")
}

// nullDevice makes a null_blk disk that keeps its data in memory.
func nullDevice(t testing.TB, settings map[string]string) string {
	t.Helper()
	guest.Run(t, "modprobe", "null_blk", "nr_devices=0")
	if _, err := os.Stat("/sys/kernel/config/nullb"); err != nil {
		guest.Run(t, "mount", "-t", "configfs", "configfs", "/sys/kernel/config")
	}
	dir := "/sys/kernel/config/nullb/test"
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		guest.WriteFile(t, dir+"/power", "0")
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	guest.WriteFile(t, dir+"/memory_backed", "1")
	for name, value := range settings {
		guest.WriteFile(t, filepath.Join(dir, name), value)
	}
	guest.WriteFile(t, dir+"/power", "1")
	index := guest.Run(t, "cat", dir+"/index")
	for _, dev := range [...]string{"/dev/test", "/dev/nullb" + index} { // newer kernels use the folder's name
		if _, err := os.Stat(dev); err == nil {
			return dev
		}
	}
	t.Fatal(fmt.Errorf("null_blk disk %s did not appear", index))
	return ""
}
