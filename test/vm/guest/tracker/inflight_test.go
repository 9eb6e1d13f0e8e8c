//go:build linux

package tracker_test

import (
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/test/vm/guest"
	"tidemark/track"
	"tidemark/track/bpf"
)

// A copy that is made while the disk is in use, pass by pass from the changes since
// the pass before, equals the disk when the writers have stopped: the work of a
// mirror, without its freeze. Nothing else notices a write in flight at a mark.
func TestCopyWhileInUse(t *testing.T) {
	for _, s := range stacks() {
		t.Run(s.name, func(t *testing.T) {
			dev := s.make(t)
			d := guest.OpenDirect(t, dev)
			l := openTracker(t, dev)
			const passes, writesAPass = 5, 250
			c := copier{l: l, d: d, image: newPicture(d), since: cut(t, l)}
			permits := make(chan struct{}, passes*writesAPass)
			wait := startWriters(t, d, permits)
			c.image.copy(t, d, extent.NewSet(extent.Extent{Len: d.Size()}))
			for range passes {
				for range writesAPass {
					permits <- struct{}{}
				}
				c.pass(t)
			}
			close(permits)
			wait()
			c.pass(t)
			if stale := c.image.differences(c.image.again(t, d)); !stale.Empty() {
				t.Errorf("the copy of %d bytes is stale, first at %v", stale.Bytes(), stale.Extents()[0])
			}
		})
	}
}

// copier keeps a copy of a device.
type copier struct {
	l     *bpf.Tracker
	d     *block.Device
	image *picture
	since track.Mark
}

// pass copies what changed since the last pass began.
func (c *copier) pass(t *testing.T) {
	t.Helper()
	now, err := c.l.Cut(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	set := changes(t, c.l, c.since, now.Mark)
	if now.Doubt { // what a mirror does then, see track.Cut
		t.Log("doubt at", now.Mark)
		set = extent.NewSet(extent.Extent{Len: c.d.Size()})
	}
	c.image.copy(t, c.d, set)
	c.since = now.Mark
}

// startWriters overwrites random blocks from several goroutines, a block a permit,
// until permits is closed; the returned function waits for the end.
func startWriters(t *testing.T, d *block.Device, permits <-chan struct{}) func() {
	const writers = 6
	var done sync.WaitGroup
	for w := range int64(writers) {
		done.Go(func() {
			buf := block.AlignedBuffer(granule)
			count := uint64(0)
			for range permits {
				count++
				binary.LittleEndian.PutUint64(buf, count*writers+uint64(w))
				// Each writer has its own blocks: two writes to one block in flight have no order.
				blockNo := rand.Int64N(d.Size()/granule/writers)*writers + w
				if _, err := d.WriteAt(buf, blockNo*granule); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	return done.Wait
}
