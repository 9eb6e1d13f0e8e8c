package pairs_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"

	"tidemark/transfer/copies"
	"tidemark/transfer/pairs"
)

// Image files are mirrored as devices are.
func ExampleMirror() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	disk := filepath.Join(dir, "disk.img")
	if err := os.WriteFile(disk, bytes.Repeat([]byte{1}, 1<<20), 0o600); err != nil {
		fmt.Println(err)
		return
	}
	pair := []pairs.Pair{{Source: disk, Target: filepath.Join(dir, "copy.img")}}
	for range 2 {
		reports, err := pairs.Mirror(context.Background(), pair, pairs.Options{StateDir: dir})
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(reports[0].Mode, "wrote", reports[0].Written, "bytes:", reports[0].Outcome)
	}
	bad, checked, err := copies.Verify(context.Background(), pair[0].Target, copies.Options{StateDir: dir})
	fmt.Println(bad.Bytes(), "of", checked, "bytes differ:", err)
	// Output:
	// full wrote 1048576 bytes: ok
	// scan wrote 0 bytes: ok
	// 0 of 1048576 bytes differ: <nil>
}
