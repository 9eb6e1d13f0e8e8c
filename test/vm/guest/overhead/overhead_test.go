//go:build linux

// Package overhead_test runs in guests only (see package guest), and only for
// bench/run: how fast fio writes to a disk with its writes remembered by nobody, by our
// tracker, and by dm-era.
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

// randomWrites returns the writes a second.
func randomWrites(t *testing.T, device string) float64 {
	t.Helper()
	out := guest.Run(t, "fio", "--name=w", "--thread", "--filename="+device, "--rw=randwrite", "--bs=4k", "--direct=1",
		"--ioengine=libaio", "--iodepth=16", "--time_based", "--runtime=3", "--randrepeat=0", "--output-format=json")
	var parsed struct {
		Jobs []struct {
			Write struct {
				IOPS float64 `json:"iops"`
			} `json:"write"`
		} `json:"jobs"`
	}
	if err := json.Unmarshal([]byte(out), &parsed); err != nil {
		t.Fatalf("fio: %v\n%s", err, out)
	}
	if len(parsed.Jobs) != 1 {
		t.Fatalf("fio: %s", out)
	}
	return parsed.Jobs[0].Write.IOPS
}
