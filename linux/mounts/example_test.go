package mounts_test

import (
	"fmt"
	"log"
	"os"

	"tidemark/linux/mounts"
)

// Whether an image file may be written to: it has no user and no content.
func Example() {
	image, err := os.CreateTemp("", "example-*.img")
	if err != nil {
		log.Fatal(err)
	}
	defer os.Remove(image.Name())
	defer image.Close()
	if err := image.Truncate(1 << 20); err != nil {
		log.Fatal(err)
	}
	table, err := mounts.Read()
	if err != nil {
		log.Fatal(err)
	}
	use, err := table.UseOf(image.Name())
	if err != nil {
		log.Fatal(err)
	}
	found, err := mounts.Probe(image, 1<<20)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("in use:", use.InUse())
	fmt.Println("signatures:", found)
	// Output:
	// in use: false
	// signatures: []
}
