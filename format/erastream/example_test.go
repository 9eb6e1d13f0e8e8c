package erastream_test

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"strings"

	"tidemark/format/erastream"
)

// Write the two ranges of a device that changed, then read them as era_apply does.
func Example() {
	source := strings.NewReader("old data, NEW data, old data, NEWER")
	var stream bytes.Buffer
	w := erastream.NewWriter(&stream)
	for _, r := range []erastream.Record{{Off: 10, Len: 8}, {Off: 30, Len: 5}} {
		if err := w.Copy(r, io.NewSectionReader(source, r.Off, r.Len)); err != nil {
			log.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		log.Fatal(err)
	}
	const targetSize = 35
	for r := erastream.NewReader(&stream, targetSize); ; {
		record, err := r.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			log.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%d: %s\n", record.Off, data)
	}
	// Output:
	// 10: NEW data
	// 30: NEWER
}
