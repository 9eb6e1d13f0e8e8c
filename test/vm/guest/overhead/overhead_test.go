//go:build linux

// Package overhead_test runs in guests only (see package guest), and only for
// bench/run: how fast fio writes to a disk with its writes remembered by nobody, by our
// tracker, and by dm-era; and to a linear device over it.
package overhead_test

import (
	"encoding/json"
	"os"
	"strconv"
	"testing"

	"tidemark/test/vm/guest"
)

func TestMain(m *testing.M) { guest.Main(m) }

const eraDevice = "/dev/mapper/overhead"

// TestOverhead measures ROUNDS times in turns, and logs each figure as
// "figure KERNEL NAME IOPS". dm-era is measured twice: in an era that begins, where the first write to each
// block waits for a commit of the metadata, and on in the same era.
func TestOverhead(t *testing.T) {
	rounds, err := strconv.Atoi(os.Getenv("ROUNDS"))
	if err != nil {
		t.Fatal(err)
	}
	data, meta := guest.Disk(t, "data"), guest.Disk(t, "meta")
	devices := []string{"--data", data, "--meta", meta}
	tidemark := func(args ...string) {
		t.Helper()
		guest.Run(t, "tidemark", args...)
	}
	figure := func(name, device string) {
		t.Helper()
		t.Logf("figure %s %s %f", os.Getenv("KERNEL"), name, randomWrites(t, device))
	}
	tidemark(append([]string{"era", "create", "overhead", "--block-size", "64K"}, devices...)...)
	tidemark("era", "close", "overhead")
	for range rounds {
		figure("neither", data)
		tidemark("track", "start", data)
		figure("bpf", data)
		tidemark("track", "stop", data)
		tidemark(append([]string{"era", "open", "overhead"}, devices...)...)
		figure("era-new", eraDevice)
		figure("era-on", eraDevice)
		tidemark("era", "close", "overhead")
	}
}

// TestLinear measures ROUNDS times in turns what a plain disk does, and a linear device over
// it, and logs each figure as "figure KERNEL LOAD plain|linear IOPS". The slow disk takes a
// millisecond for a request: what the processor does is to that as it is to a real disk's time on
// a processor that is not emulated.
func TestLinear(t *testing.T) {
	rounds, err := strconv.Atoi(os.Getenv("ROUNDS"))
	if err != nil {
		t.Fatal(err)
	}
	guest.Modprobe(t, "dm-mod")
	guest.Run(t, "modprobe", "null_blk", "nr_devices=1", "gb=1", "irqmode=2", "completion_nsec=1000000")
	virtio, slow := guest.Disk(t, "data"), "/dev/nullb0"
	for round := range rounds {
		for _, load := range []struct {
			name, disk string
			args       []string
		}{
			{"write-4k-1", virtio, []string{"--rw=randwrite", "--bs=4k", "--iodepth=1"}},
			{"write-4k-16", virtio, []string{"--rw=randwrite", "--bs=4k", "--iodepth=16"}},
			{"read-4k-16", virtio, []string{"--rw=randread", "--bs=4k", "--iodepth=16"}},
			{"write-64k-1", virtio, []string{"--rw=write", "--bs=64k", "--iodepth=1"}},
			{"slow-write-4k-1", slow, []string{"--rw=randwrite", "--bs=4k", "--iodepth=1"}},
			{"slow-write-4k-4", slow, []string{"--rw=randwrite", "--bs=4k", "--iodepth=4"}},
		} {
			measure := func(name, device string) {
				t.Helper()
				t.Logf("figure %s %s %s %f", os.Getenv("KERNEL"), load.name, name, fio(t, device, load.args...))
			}
			linear := func() {
				t.Helper()
				sectors := guest.Run(t, "blockdev", "--getsz", load.disk)
				guest.Run(t, "dmsetup", "create", "linear", "--table", "0 "+sectors+" linear "+load.disk+" 0")
				measure("linear", "/dev/mapper/linear")
				guest.Run(t, "dmsetup", "remove", "--retry", "linear")
			}
			// Who is first is no better for it.
			if round%2 == 0 {
				measure("plain", load.disk)
				linear()
			} else {
				linear()
				measure("plain", load.disk)
			}
		}
	}
}

// randomWrites returns the writes a second.
func randomWrites(t *testing.T, device string) float64 {
	t.Helper()
	return fio(t, device, "--rw=randwrite", "--bs=4k", "--iodepth=16", "--runtime=3")
}

// fio returns the reads or writes a second.
func fio(t *testing.T, device string, load ...string) float64 {
	t.Helper()
	args := []string{"--name=w", "--thread", "--filename=" + device, "--direct=1", "--ioengine=libaio", "--time_based", "--runtime=2", "--randrepeat=0", "--output-format=json"}
	out := guest.Run(t, "fio", append(args, load...)...)
	type rate struct {
		IOPS float64 `json:"iops"`
	}
	var parsed struct {
		Jobs []struct {
			Read  rate `json:"read"`
			Write rate `json:"write"`
		} `json:"jobs"`
	}
	if err := json.Unmarshal([]byte(out), &parsed); err != nil {
		t.Fatalf("fio: %v\n%s", err, out)
	}
	if len(parsed.Jobs) != 1 {
		t.Fatalf("fio: %s", out)
	}
	return parsed.Jobs[0].Read.IOPS + parsed.Jobs[0].Write.IOPS
}
