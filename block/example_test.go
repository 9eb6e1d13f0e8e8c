package block_test

import (
	"fmt"
	"log"
	"os"
	"path/filepath"

	"tidemark/block"
	"tidemark/extent"
)

// The first sector of a disk image, and where the image holds data.
func Example() {
	dir, err := os.MkdirTemp("", "example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "disk.img")
	if err := os.WriteFile(path, []byte("boot sector"), 0o600); err != nil {
		log.Fatal(err)
	}
	if err := os.Truncate(path, 1<<30); err != nil {
		log.Fatal(err)
	}
	d, err := block.Open(path, block.Options{Direct: true})
	if err != nil {
		log.Fatal(err)
	}
	defer d.Close()
	sector := block.AlignedBuffer(d.SectorSize())
	if _, err := d.ReadAt(sector, 0); err != nil {
		log.Fatal(err)
	}
	data, err := d.Data(extent.Extent{Len: d.Size()})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", sector[:11])
	fmt.Println("less than a MiB of data:", data.Bytes() < 1<<20)
	// Output:
	// boot sector
	// less than a MiB of data: true
}
