package bpf_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"tidemark/block"
	"tidemark/track"
	"tidemark/track/bpf"
)

// What has changed on a disk since the mark of the last copy; it needs root.
func ExampleOpen() {
	ctx := context.Background()
	disk, err := block.Open("/dev/vdb", block.Options{Direct: true})
	if err != nil {
		log.Fatal(err)
	}
	defer disk.Close()
	tracker, err := bpf.Open(ctx, disk, bpf.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer tracker.Close()

	var stored track.Mark // with the copy, the last time
	cut, err := tracker.Cut(ctx)
	if err != nil {
		log.Fatal(err)
	}
	changed, err := tracker.Changes(ctx, stored, cut.Mark)
	if errors.Is(err, track.ErrMarkLost) {
		changed, err = tracker.Changes(ctx, "", cut.Mark)
	}
	if err != nil {
		log.Fatal(err)
	}
	for _, e := range changed.Extents() {
		fmt.Println("copy", e.Len, "bytes at", e.Off)
	}
	// Copied while the disk is in use, so with quiet false: the next Changes names what
	// was being written meanwhile.
	if err := tracker.Keep(ctx, "my backup", cut.Mark, false); err != nil {
		log.Fatal(err)
	}
}
