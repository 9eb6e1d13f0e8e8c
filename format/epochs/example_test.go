package epochs_test

import (
	"bytes"
	"fmt"

	"tidemark/extent"
	"tidemark/format/epochs"
)

func Example() {
	var file bytes.Buffer
	err := epochs.Encode(&file, epochs.File{
		Generation: "0123456789abcdef", From: 3, To: 5, DiskSize: 1 << 30, Granularity: 4096,
		Set: extent.NewSet(extent.Extent{Off: 8192, Len: 4096}, extent.Extent{Off: 1 << 20, Len: 65536}),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	f, err := epochs.Decode(bytes.NewReader(file.Bytes()), int64(file.Len()))
	fmt.Println(f.Set.Bytes(), "bytes changed in epochs", f.From, "to", f.To-1, err)
	// Output: 69632 bytes changed in epochs 3 to 4 <nil>
}
