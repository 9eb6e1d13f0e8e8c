package track_test

import (
	"context"
	"errors"
	"fmt"

	"tidemark/track"
)

// A copy is kept in step with a source: what has to be read is asked of the tracker, and
// the new mark is stored with the copy.
func Example() {
	ctx := context.Background()
	// A Scan serves for any source. A backend that names less is opened in its place
	// where there is one: see the packages track/bpf and track/era.
	var tracker track.Tracker = track.NewScan(1 << 20)
	defer tracker.Close()

	stored := track.Mark("bpf:0123456789abcdef:7") // with the copy, the last time
	cut, err := tracker.Cut(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	changed, err := tracker.Changes(ctx, stored, cut.Mark)
	if errors.Is(err, track.ErrMarkLost) {
		fmt.Println(err)
		changed, err = tracker.Changes(ctx, "", cut.Mark)
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("read", changed.Bytes(), "bytes, then store", cut.Mark)
	// Output:
	// track: mark bpf:0123456789abcdef:7: mark lost: the source is not tracked, only compared
	// read 1048576 bytes, then store scan
}
