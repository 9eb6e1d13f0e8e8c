//go:build linux

package snapshot_test

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidemark/block"
	"tidemark/format/era"
	"tidemark/snapshot"
	"tidemark/test/vm/guest"
	"tidemark/test/vm/guest/instant"
)

// An era device is snapshotted as any other, also when commands are killed; it is an era device all
// the time and loses no era, so that mirrors by its eras are incremental over the swaps, and equal.
func TestAnEraDevice(t *testing.T) {
	data := guest.Mapper(t, "data", fmt.Sprintf("0 %d linear %s 0", sectors, guest.Disk(t, "data")))
	meta := guest.Mapper(t, "meta", fmt.Sprintf("0 16384 linear %s %d", guest.Disk(t, "data"), sectors))
	guest.Run(t, "dd", "if=/dev/zero", "of="+meta, "bs=1M", "count=1", "status=none", "conv=fsync")
	guest.Run(t, "tidemark", "era", "create", "E", "--data", data, "--meta", meta, "--block-size", "64K", "--force")
	name, dev, at, image := "E", "/dev/mapper/E", t.TempDir(), filepath.Join(t.TempDir(), "image")
	mkfs(t, "ext4", dev)
	guest.Run(t, "mount", dev, at)
	table := guest.Run(t, "dmsetup", "table", name)
	same := func() {
		t.Helper()
		if now := guest.Run(t, "dmsetup", "table", name); now != table {
			t.Errorf("the table was %s, and is %s", table, now)
		}
		bare(t, at)
	}
	mirror := func(mode string) {
		t.Helper()
		out := guest.Run(t, "tidemark", "mirror", "--max-freeze", "1m", "--json", "--view", "dm", "--tracker", "era", dev, image)
		if !strings.Contains(out, fmt.Sprintf("%q:%q", "mode", mode)) || !strings.Contains(out, `"view":"dm"`) {
			t.Fatalf("want mode %s: %s", mode, out)
		}
		guest.Run(t, "e2fsck", "-fn", image)
		same()
	}
	stop := instant.Load(t, at)
	defer stop()
	mirror("full")
	settle(t, name)
	s, held := take(t, snapshot.Request{Devices: []snapshot.Device{{Path: dev, Size: 14 << 20}}})
	settle(t, name)
	guest.Run(t, "dmsetup", "message", name, "0", "checkpoint")
	guest.Run(t, "tidemark", "era", "status", name)
	instant.Compare(t, held[0], instant.MustRead(t, s.Image(s.Volumes[0])))
	check(t, "ext4", s.Image(s.Volumes[0]))
	destroy(t, s)
	same()
	refused(t, "dm-era follows what changes", "--track", dev)
	killed(t, name, at, asked(t)/4, byCommand)
	mirror("incremental")
	settle(t, name)
	mirror("incremental")
	stop()
	guest.Run(t, "umount", at)
	if out := guest.Run(t, "tidemark", "mirror", "--json", "--tracker", "era", dev, image); !strings.Contains(out, `"mode":"incremental"`) {
		t.Errorf("the mark did not outlive the snapshots: %s", out)
	}
	instant.Compare(t, instant.MustRead(t, dev), instant.MustRead(t, image))
	guest.Run(t, "tidemark", "era", "close", name)
	m, err := block.Open(meta, block.Options{Direct: true, Exclusive: true})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, err := era.Check(m, m.Size(), func(f *era.Fault) { t.Errorf("metadata: %v", f) }); err != nil {
		t.Error(err)
	}
}

// killed kills commands that make and destroy a snapshot of a busy device, at moments that are spread
// over their time, and has the next command put things right.
func killed(t *testing.T, name, at string, rounds int, create ...func(ctx context.Context, dev string) *exec.Cmd) {
	t.Helper()
	dev := "/dev/mapper/" + name
	var took, ended time.Duration
	for _, f := range create {
		began := time.Now()
		if out, err := f(t.Context(), dev).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		took = max(took, time.Since(began))
		began = time.Now()
		guest.Run(t, "tidemark", "snapshot", "destroy", "k")
		ended = max(ended, time.Since(began))
	}
	for i := range rounds {
		ctx, cancel := context.WithTimeout(t.Context(), took*time.Duration(i)/time.Duration(rounds))
		_ = create[i%len(create)](ctx, dev).Run()
		cancel()
		settle(t, name)
		guest.Run(t, "tidemark", "snapshot", "repair")
		if _, err := snapshot.Find(options, "k"); err == nil {
			ctx, cancel := context.WithTimeout(t.Context(), ended*time.Duration(i)/time.Duration(rounds))
			_ = exec.CommandContext(ctx, "tidemark", "snapshot", "destroy", "k").Run()
			cancel()
			guest.Run(t, "tidemark", "snapshot", "repair")
			if s, err := snapshot.Find(options, "k"); err == nil {
				destroy(t, s)
			}
		}
		settle(t, name)
		bare(t, at)
	}
}
