//go:build linux

// Package thin_test runs in guests only (see package guest): pools of the kernel's dm-thin,
// whose metadata is read here while they are in use, and on the host afterwards.
package thin_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"

	"tidemark/block"
	"tidemark/linux/dm"
	"tidemark/linux/dmthin"
	"tidemark/test/vm/guest"
)

func TestMain(m *testing.M) { guest.Main(m) }

const (
	blockSectors = 128
	blockBytes   = blockSectors * 512
	volBlocks    = 2000 // several leaves of a tree
)

// message sends a message to the pool.
func message(t *testing.T, format string, args ...any) {
	t.Helper()
	guest.Run(t, "dmsetup", "message", "pool", "0", fmt.Sprintf(format, args...))
}

// activate makes the device of a thin volume, and removes it at the end of the test.
func activate(t *testing.T, id int, more string) string {
	t.Helper()
	return guest.Mapper(t, fmt.Sprintf("vol%d", id), fmt.Sprintf("0 %d thin /dev/mapper/pool %d%s", volBlocks*blockSectors, id, more))
}

// write writes at n random places, some of them several blocks long.
func write(t *testing.T, rng *rand.Rand, path string, n int) {
	t.Helper()
	d := guest.OpenDirect(t, path)
	buf := block.AlignedBuffer(blockBytes)
	for range n {
		guest.Scramble(buf)
		at := rng.Int64N(d.Size()/blockBytes - 8)
		for i := range 1 + rng.Int64N(8) {
			if _, err := d.WriteAt(buf[:4096], (at+i)*blockBytes+4096*rng.Int64N(16)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	d.Close()
}

// fill writes to most blocks.
func fill(t *testing.T, path string) {
	t.Helper()
	d := guest.OpenDirect(t, path)
	buf := block.AlignedBuffer(4096)
	guest.Scramble(buf)
	for b := range int64(volBlocks) {
		if b%50 >= 43 {
			continue
		}
		if _, err := d.WriteAt(buf, b*blockBytes); err != nil {
			t.Fatal(err)
		}
	}
	d.Close()
}

// snapshot makes one of a volume that is in use.
func snapshot(t *testing.T, id, of int) {
	t.Helper()
	name := fmt.Sprintf("vol%d", of)
	guest.Run(t, "dmsetup", "suspend", name)
	message(t, "create_snap %d %d", id, of)
	guest.Run(t, "dmsetup", "resume", name)
}

// left has a process of ours die while it holds the metadata snapshot: the next one releases it.
func left(t *testing.T) {
	t.Helper()
	ctl, err := dm.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer ctl.Close()
	pool, volume, err := dmthin.Find(ctl, "/dev/mapper/vol0")
	if err != nil || volume == nil || volume.ID != 0 || pool.BlockSize != blockBytes {
		t.Fatalf("%+v, %+v, %v", pool, volume, err)
	}
	o := dmthin.Options{RunDir: t.TempDir(), StateDir: t.TempDir()}
	held, err := pool.Hold(ctl, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Hold(ctl, o); !errors.Is(err, dmthin.ErrHeld) {
		t.Errorf("held twice: %v", err)
	}
	o.RunDir = t.TempDir() // as after a reboot, or when the process has died: the lock is free
	again, err := pool.Hold(ctl, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	_ = held.Close() // what it held is gone
	if st, err := pool.Status(ctl); err != nil || st.Held != 0 {
		t.Errorf("%+v, %v", st, err)
	}
}

// The metadata snapshot of a pool in use is read as thin_dump and thin_delta read it; what is left
// on the metadata device is for the host.
func TestPoolInUse(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	meta, data := guest.Disk(t, "meta"), guest.Disk(t, "data")
	guest.Run(t, "dd", "if=/dev/zero", "of="+meta, "bs=4096", "count=1", "conv=fsync", "status=none")
	guest.Mapper(t, "pool", fmt.Sprintf("0 %s thin-pool %s %s %d 0 1 skip_block_zeroing", guest.Sectors(t, data), meta, data, blockSectors))
	message(t, "create_thin 0")
	vol := activate(t, 0, "")
	fill(t, vol)
	for id := 1; id <= 12; id++ {
		snapshot(t, id, 0)
		write(t, rng, vol, 6)
		if id%3 == 0 {
			at := rng.IntN(volBlocks - 30)
			guest.Run(t, "blkdiscard", "-o", fmt.Sprint(at*blockBytes), "-l", fmt.Sprint(20*blockBytes), vol)
		}
	}
	message(t, "delete 5")
	message(t, "create_thin 100")
	write(t, rng, activate(t, 100, " "+guest.Disk(t, "origin")), 20) // an external origin
	message(t, "reserve_metadata_snap")
	write(t, rng, vol, 10) // behind the metadata snapshot

	for _, args := range [][]string{
		{"dump", "-m"}, {"delta", "-m", "--snap1", "3", "--snap2", "9"}, {"delta", "-m", "--snap1", "0", "--snap2", "100", "--verbose"},
	} {
		got := guest.Run(t, "tidemark", append(append([]string{"thin"}, args...), meta)...)
		want := guest.Run(t, "thin_"+args[0], append(args[1:], meta)...)
		want = strings.Replace(want, `nr_data_blocks="0"`, `nr_data_blocks="4096"`, 1) // the tools tell what the snapshot has in its place
		if got != want {
			t.Errorf("thin %v: %d bytes, the tool has %d", args, len(got), len(want))
		}
	}
	guest.Run(t, "tidemark", "thin", "check", "-m", meta)

	// The snapshot of another program is left alone, and one of ours is taken and released.
	if out, err := exec.Command("tidemark", "thin", "ls", vol).CombinedOutput(); err == nil || !strings.Contains(string(out), "held by another program, in block ") {
		t.Errorf("%v: %s", err, out)
	}
	message(t, "release_metadata_snap")
	for range 2 {
		got := guest.Run(t, "tidemark", "thin", "delta", "--json", "--snap1", "3", "--snap2", "0", vol)
		if want := guest.Run(t, "tidemark", "thin", "delta", "--json", "--snap1", "3", "--snap2", "0", "/dev/mapper/pool"); got != want {
			t.Errorf("%s\nwant %s", got, want)
		}
	}
	left(t)
	message(t, "reserve_metadata_snap")
	if out, err := exec.Command("tidemark", "thin", "dump", meta).CombinedOutput(); err == nil {
		t.Errorf("a pool in use was read without its snapshot: %.200s", out)
	}
}
