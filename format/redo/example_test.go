package redo_test

import (
	"fmt"
	"log"
	"os"

	"tidemark/extent"
	"tidemark/format/redo"
)

// A journal of two changes is written and read back.
func Example() {
	f, err := os.CreateTemp("", "journal-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.Remove(f.Name())
	defer f.Close()

	w := redo.NewWriter(f)
	if err := w.Data(4096, []byte("tide")); err != nil {
		log.Fatal(err)
	}
	w.NextPass() // what follows holds over what came before
	if err := w.Zero(extent.Extent{Off: 4098, Len: 1}); err != nil {
		log.Fatal(err)
	}
	if err := w.Seal(8192, 8192, nil); err != nil {
		log.Fatal(err)
	}

	j, err := redo.NewReader(f, w.Len())
	if err == nil {
		err = j.Verify()
	}
	if err != nil {
		log.Fatal(err)
	}
	err = j.Each(func(e redo.Entry) error {
		_, err := fmt.Printf("pass %d: %v, zeros %v\n", e.Pass, e.Extent, e.Zero())
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output:
	// pass 0: 4096+4, zeros false
	// pass 1: 4098+1, zeros true
}
