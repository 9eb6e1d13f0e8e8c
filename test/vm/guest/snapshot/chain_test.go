//go:build linux

package snapshot_test

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"tidemark/block"
	"tidemark/snapshot"
	"tidemark/test/vm/guest"
	"tidemark/test/vm/guest/instant"
	"tidemark/track"
	"tidemark/track/bpf"
)

// A copy of a snapshot, with what the tracker says has changed by the next one taken from that, is the
// next one, byte for byte; also after a snapshot that overflowed in between.
func TestACopyAndTheChangesAreTheNextSnapshot(t *testing.T) {
	name, at := origin(t, 0, "ext4")
	dev := "/dev/mapper/" + name
	disk, err := block.Open(dev, block.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	tracker, err := bpf.Open(t.Context(), disk, options.Track)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { guest.Run(t, "tidemark", "track", "stop", dev) })
	defer tracker.Close()
	calm := instant.Churn(t, at)
	defer calm()
	stop := instant.Load(t, at)
	defer stop()
	var mark track.Mark
	var copied []byte
	for round := range 3 {
		var cut track.Cut
		s, err := snapshot.Create(t.Context(), options, snapshot.Request{
			Devices: []snapshot.Device{{Path: dev, Size: 16 << 20}}, MaxFreeze: time.Minute,
			Instant: func(ctx context.Context) (err error) {
				cut, err = tracker.Cut(ctx)
				return err
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		settle(t, name)
		image := instant.MustRead(t, s.Image(s.Volumes[0]))
		if round > 0 {
			changed, err := tracker.Changes(t.Context(), mark, cut.Mark)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d KiB of %d have changed", changed.Bytes()>>10, len(image)>>10)
			for _, e := range changed.Extents() {
				copy(copied[e.Off:e.End()], image[e.Off:e.End()])
			}
			instant.Compare(t, image, copied)
		}
		mark, copied = cut.Mark, image
		destroy(t, s)
		settle(t, name)
		if round == 0 {
			overflow(t, name)
		}
	}
	stop()
	calm()
	bare(t, at)
}

// overflow takes a snapshot of a busy device that is lost.
func overflow(t *testing.T, name string) {
	t.Helper()
	create(t, "--name", "o", "--size", "256K", "--chunk", "32K", "/dev/mapper/"+name)
	for {
		out, err := exec.Command("tidemark", "snapshot", "status", "o").CombinedOutput()
		if err != nil && strings.Contains(string(out), "was full") {
			break
		}
		settle(t, name)
	}
	guest.Run(t, "tidemark", "snapshot", "destroy", "o")
}

// The example of package snapshot works: the first night, and one that follows.
func TestTheExampleOfPackageSnapshot(t *testing.T) {
	o := snapshot.Options{StateDir: "/var/lib/backup", Track: bpf.Options{RunDir: "/run/backup"}}
	for i, name := range []string{"db", "log"} {
		dev, at := guest.Mapper(t, name, fmt.Sprintf("0 %d linear %s %d", sectors, guest.Disk(t, "data"), i*sectors)), t.TempDir()
		mkfs(t, "ext4", dev)
		guest.Run(t, "mount", dev, at)
		t.Cleanup(func() { guest.Run(t, "umount", at) })
		defer bare(t, at)
	}
	for range 2 {
		out := guest.Run(t, "/bin/snapshot.test", "-test.run", "^TestExample$", "-test.v")
		for _, want := range []string{"copy from /dev/mapper/db+nightly all of it", "copy from /dev/mapper/log+nightly all of it", "db has changed by ", "log has changed by ", " bytes since <nil>"} {
			if !strings.Contains(out, want) {
				t.Errorf("want %q: %s", want, out)
			}
		}
	}
	s, err := snapshot.Find(o, "nightly")
	if err != nil {
		t.Fatal(err)
	}
	if s.Volumes[1].Chain.Sequence != 2 {
		t.Errorf("%+v", s.Volumes[1].Chain)
	}
	destroy(t, s)
}
