package view

import (
	"context"
	"errors"
	"strings"
	"testing"

	"tidemark/block"
	"tidemark/linux/mounts"
	"tidemark/linux/mounts/mountstest"
	"tidemark/linux/sysfs"
)

// stuckDisk returns a disk that answers no write until thaw is called.
func stuckDisk(t *testing.T) (dev string, freeze, thaw func()) {
	t.Helper()
	outer := mountstest.Disk(t, 64<<20)
	mountstest.Mkfs(t, "ext4", outer)
	dir := mountstest.Mount(t, outer)
	mountstest.ThawAtEnd(t, dir)
	dev = mountstest.Attach(t, mountstest.ImageIn(t, dir, 16<<20))
	return dev, func() { mountstest.Run(t, "fsfreeze", "--freeze", dir) },
		func() { mountstest.Run(t, "fsfreeze", "--unfreeze", dir) }
}

// writeStuck begins a write and returns once it is in flight; ended is closed when
// it is done.
func writeStuck(t *testing.T, dev string, at sysfs.Dev) (ended chan struct{}) {
	t.Helper()
	d, err := block.Open(dev, block.Options{Write: true, Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	ended = make(chan struct{})
	go func() {
		defer close(ended)
		defer d.Close()
		if _, err := d.WriteAt(block.AlignedBuffer(4096), 0); err != nil {
			t.Error(err)
		}
	}()
	mountstest.Eventually(t, "the write is in flight", func() bool {
		n, err := sysfs.WritesInFlight(at.Dir())
		return err == nil && n > 0
	})
	return ended
}

func TestOfflineSeesAWriteThatIsInFlightTheWholeTime(t *testing.T) {
	dev, freeze, thaw := stuckDisk(t)
	at, err := mounts.DeviceOf(dev)
	if err != nil {
		t.Fatal(err)
	}
	d, err := block.Open(dev, block.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	h, err := Offline(Options{Sources: []*block.Device{d}}).Take(t.Context(), func(context.Context) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	freeze()
	ended := writeStuck(t, dev, at)
	if _, err := h.Close(); !errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), "in flight") {
		t.Errorf("release: %v", err)
	}
	stopped := errors.New("stopped")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stopped)
	if err := idle(ctx, at); !errors.Is(err, stopped) {
		t.Errorf("with a write in flight: %v, want to wait", err)
	}
	thaw()
	<-ended
	if err := idle(t.Context(), at); err != nil {
		t.Error(err)
	}
}
