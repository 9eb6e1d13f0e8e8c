package sums_test

import (
	"fmt"
	"log"
	"os"

	"tidemark/format/sums"
)

// The checksums of two blocks are stored, and one of them is read back.
func Example() {
	f, err := os.CreateTemp("", "sums-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.Remove(f.Name())
	defer f.Close()

	const blockSize = 4096
	s, err := sums.Create(f, [16]byte{1}, blockSize)
	if err != nil {
		log.Fatal(err)
	}
	block := make([]byte, blockSize)
	block[0] = 't'
	if err := s.Write([]sums.Sum{sums.Of(block), sums.Of(make([]byte, blockSize))}, 0); err != nil {
		log.Fatal(err)
	}
	got := make([]sums.Sum, 1)
	if err := s.Read(got, blockSize); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%x\n", got[0])
	// Output: 00000000000000000000000000000000
}
