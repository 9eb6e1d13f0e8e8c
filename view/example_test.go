package view_test

import (
	"context"
	"fmt"
	"os"

	"tidemark/block"
	"tidemark/view"
)

// A view of an image file that no program uses.
func ExampleChoose() {
	image, err := os.CreateTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.Remove(image.Name())
	if err := image.Truncate(1 << 20); err != nil {
		fmt.Println(err)
		return
	}
	source, err := block.Open(image.Name(), block.Options{Direct: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer source.Close()
	ctx := context.Background()
	provider, why, err := view.Choose(ctx, "auto", view.Options{Sources: []*block.Device{source}})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(why)
	v, err := provider.Take(ctx, func(context.Context) error {
		fmt.Println("the instant: trackers end their epochs")
		return nil
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(v.Source(0).Size(), "bytes to read")
	_, err = v.Close()
	fmt.Println("it stood still:", err == nil)
	// Output:
	// offline: no filesystem is mounted from it
	// the instant: trackers end their epochs
	// 1048576 bytes to read
	// it stood still: true
}
